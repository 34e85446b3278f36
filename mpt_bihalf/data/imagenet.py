"""ImageNet (Deng et al. 2009), or any folders like its: read file by file, in the standard crops."""

from __future__ import annotations

from pathlib import Path

from .dataset import Dataset
from .folder import list_parts
from .image_files import ImageFiles

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP = 224


def load_imagenet(path: Path, image_size: int | None) -> Dataset:
    """The images of path/train/<class>/ and path/val/<class>/ (or path/test/), decoded when they are needed.

    S = image_size, or else 224. Cropped as `ImageFiles` has it, mirrored half the time in training, standardised by
    ImageNet's usual mean and std. Raises DataError where a part is missing or empty, or the classes of the two differ.
    """
    found = list_parts(path)
    path = found.path
    train, test = (ImageFiles.of(samples, path, image_size or CROP) for samples in (found.train, found.test))
    return Dataset(
        f"imagenet:{path}", train, test, found.classes, MEAN, STD, crop_padding=0, flip=True, left_out=found.left_out
    )

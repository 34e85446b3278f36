"""ImageNet (Deng et al. 2009), or any folders like its: read file by file, in the standard crops."""

from __future__ import annotations

from pathlib import Path

import torch

from .folder import Samples, list_parts
from .streamed import ImageFiles, StreamedDataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP, RESIZED = 224, 256


def load_imagenet(data_root: Path, image_size: int | None) -> StreamedDataset:
    """The images of data_root/imagenet/train/<class>/ and data_root/imagenet/val/<class>/; see `load_imagenet_from`."""
    return load_imagenet_from(data_root / "imagenet", image_size)


def load_imagenet_from(path: Path, image_size: int | None) -> StreamedDataset:
    """The images of path/train/<class>/ and path/val/<class>/ (or path/test/), as RGB, decoded when they are needed.

    Training: a random part of 8 to 100 % of the image, scaled to 224 pixels, mirrored half the time. Test: the shorter
    side scaled to 256, the middle 224. With another image_size both in proportion. Standardised by ImageNet's mean and
    std. Raises DataError where a part is missing or empty, or the classes of the two differ.
    """
    from torchvision.transforms import v2  # a second that no other data set needs

    size = image_size or CROP
    path, classes, train, test = list_parts(path)
    return StreamedDataset(
        f"imagenet:{path}",
        _files(train),
        _files(test),
        classes=classes,
        mean=MEAN,
        std=STD,
        image_size=size,
        augmented=v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()]),
        plain=v2.Compose([v2.Resize(round(size * RESIZED / CROP)), v2.CenterCrop(size), v2.PILToTensor()]),
    )


def _files(samples: Samples) -> ImageFiles:
    return ImageFiles(tuple(file for file, _ in samples), torch.tensor([label for _, label in samples]))

"""A user's own images, in folders named by class, decoded once and then read back from the cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import cache
from .dataset import DataError, Dataset, ImageSet, resize
from .locations import cache_root

# Part of every fingerprint: to be raised whenever the same files are decoded to other pixels than before.
FORMAT = 1
# Files a thread decodes at a time, so that small images do not cost more in bookkeeping than in decoding.
DECODE_CHUNK = 64
# Pixels of an image below which threads lose more by waiting for the interpreter's lock than they gain: measured, on
# JPEG, two threads take 1.4 times as long as one at 32x32, the same at 64x64, and 0.65 times at 96x96 and 128x128.
THREADED_PIXELS = 80 * 80
MAX_THREADS = 16

Samples = list[tuple[str, int]]


def load_folder(path: Path, image_size: int | None) -> Dataset:
    """The images of path/train/<class>/ and path/test/<class>/ (or path/val/ where there is no test), as RGB.

    uint8 [N, 3, S, S] with S = image_size, or else the size of the images, which must then all be alike and square.
    The classes are the sorted names of the folders. Mirrored and cropped in training, with padding S // 8, which is
    CIFAR's 4 at 32. Standardised by the training set's own mean and std.

    The decoded images are kept in one file of the cache folder, until a file's name, size or time of change differs.
    All are held in memory: S * S * 3 bytes each.

    Raises DataError where a part is missing or empty, the classes of the two differ, an image cannot be read, or sizes
    differ and no image_size is given.
    """
    path, classes, train, test = list_parts(path)
    pixels = _cached_pixels(path, train + test, image_size)
    labels = torch.tensor([label for _, label in train + test])
    images = pixels.permute(0, 3, 1, 2)
    train_set = ImageSet(images[: len(train)], labels[: len(train)])
    test_set = ImageSet(images[len(train) :], labels[len(train) :])
    mean, std = train_set.statistics()
    padding = images.shape[2] // 8
    return Dataset(f"folder:{path}", train_set, test_set, classes, mean, std, crop_padding=padding, flip=True)


def list_parts(path: Path) -> tuple[Path, tuple[str, ...], Samples, Samples]:
    """The absolute path, the classes, and the (file, class index) pairs of training and of test set.

    Raises DataError where a part is missing or empty, or the classes of the two differ.
    """
    path = Path(os.path.abspath(path.expanduser()))
    classes, train = _list(path / "train")
    test_folder = path / "test" if os.path.isdir(path / "test") or not os.path.isdir(path / "val") else path / "val"
    test_classes, test = _list(test_folder)
    if classes != test_classes:
        differing = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise DataError(f"{path / 'train'} and {test_folder} must hold the same classes, but differ in: {differing}")
    return path, tuple(classes), train, test


def _list(folder: Path) -> tuple[list[str], Samples]:
    """The classes of `folder` and its (file, class index) pairs, as torchvision's ImageFolder has them."""
    from torchvision.datasets import ImageFolder  # here, because importing it takes a second

    try:
        found = ImageFolder(str(folder))
    except OSError as error:
        raise DataError(f"cannot read {folder}, which is to hold one folder of images a class: {error}") from error
    return found.classes, found.samples


def _cached_pixels(path: Path, samples: Samples, image_size: int | None) -> Tensor:
    """uint8 [N, S, S, 3], from the cache where the files are still those it was made of."""
    # One file a folder and size, so that a changed folder replaces its old images in the cache.
    name = hashlib.sha256(f"{path}\n{image_size}".encode()).hexdigest()[:32]
    file = cache_root() / f"folder-{name}.pt"
    fingerprint = _fingerprint(samples, image_size)
    stored = cache.read(file, fingerprint)
    if stored is not None:
        return stored["pixels"]
    pixels = _decode([sample for sample, _ in samples], image_size)
    cache.write(file, fingerprint, {"pixels": pixels})
    return pixels


def _fingerprint(samples: Samples, image_size: int | None) -> str:
    """Of every file's absolute path, size and time of change, and of what is made of them."""
    digest = hashlib.sha256(repr((FORMAT, image_size)).encode())
    for sample, _ in samples:
        try:
            status = os.stat(sample)
        except OSError as error:
            raise DataError(f"cannot read image {sample} ({error.strerror}): replace or remove it") from error
        digest.update(repr((sample, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _decode(files: Sequence[str], image_size: int | None) -> Tensor:
    """uint8 [N, S, S, 3], decoded by several threads under a progress bar."""
    width, height = read_image(files[0]).size
    if image_size is None and height != width:
        raise DataError(f"{files[0]} is {width}x{height}, not square: set image_size to scale all images")
    size = image_size or height
    workers = min(os.cpu_count() or 1, MAX_THREADS) if height * width >= THREADED_PIXELS else 1
    try:
        pixels = np.empty((len(files), size, size, 3), dtype=np.uint8)
    except MemoryError as error:
        needed = len(files) * size * size * 3 / 2**30
        raise DataError(
            f"{len(files)} images of {size}x{size} need {needed:.0f} GiB: set a smaller image_size"
        ) from error

    def decode(start: int) -> int:
        chunk = files[start : start + DECODE_CHUNK]
        for i, file in enumerate(chunk, start):
            image = np.asarray(read_image(file))
            if image_size is not None:
                image = _scale(image, image_size)
            elif image.shape != pixels.shape[1:]:
                raise DataError(
                    f"{files[0]} is {size}x{size} but {file} is {image.shape[1]}x{image.shape[0]}: "
                    "set image_size to scale all images"
                )
            pixels[i] = image
        return len(chunk)

    with (
        ThreadPoolExecutor(workers) as threads,
        tqdm(total=len(files), desc="decoding images", unit="image", disable=None) as progress,
    ):
        for done in threads.map(decode, range(0, len(files), DECODE_CHUNK)):
            progress.update(done)
    return torch.from_numpy(pixels)


def read_image(file: str) -> Image.Image:
    """The image as RGB; raises DataError, naming the file, where it cannot be read."""
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DataError(f"cannot read image {file} ({error}): replace or remove it") from error


def _scale(image: np.ndarray, image_size: int) -> np.ndarray:
    planes = torch.tensor(image).permute(2, 0, 1)[None]
    return resize(planes, image_size)[0].permute(1, 2, 0).numpy()

"""A user's own images, in folders named by class, decoded once and then read back from the cache."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import cache
from .dataset import DataError, Dataset, ImageSet, resize
from .decoding import image_bytes, image_endings, read_image
from .digest import FORMAT, Part, file_status
from .locations import cache_root

# Files a thread decodes at a time, so that small images do not cost more in bookkeeping than in decoding.
DECODE_CHUNK = 64
# Pixels of an image below which threads lose more by waiting for the interpreter's lock than they gain: measured, on
# JPEG, two threads take 1.4 times as long as one at 32x32, the same at 64x64, and 0.65 times at 96x96 and 128x128.
THREADED_PIXELS = 80 * 80
MAX_THREADS = 16
# Folders that programs leave behind and nobody means as a class, beside those whose names begin with a dot.
NO_CLASS = ("__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
# How many names a message has at most.
MOST_NAMES = 5
# By how many ways, of links, a folder may be reached from that of its class.
MOST_WAYS = 16

# (path below the folder that holds the parts, class index)
Samples = list[tuple[str, int]]


def load_folder(path: Path, image_size: int | None) -> Dataset:
    """The images of path/train/<class>/ and path/test/<class>/ (or path/val/ where there is no test), as RGB.

    uint8 [N, 3, S, S] with S = image_size, or else the size of the images, which must then all be alike and square.
    The classes are the sorted names of the folders. Mirrored and cropped in training, with padding S // 8, which is
    CIFAR's 4 at 32. Standardised by the training set's own mean and std.

    The decoded images are kept in one file of the cache folder, until a file's name, size, times of change or inode
    differ. All are held in memory: S * S * 3 bytes each.

    Raises DataError where a part is missing or empty, the classes of the two differ, an image cannot be read, or sizes
    differ and no image_size is given.
    """
    found = list_parts(path)
    pixels, train_digest, test_digest = _cached_images(found, image_size)
    labels = torch.tensor([label for _, label in found.train + found.test])
    images, train = pixels.permute(0, 3, 1, 2), len(found.train)
    train_set = ImageSet(images[:train], labels[:train], train_digest)
    test_set = ImageSet(images[train:], labels[train:], test_digest)
    mean, std = train_set.statistics()
    return Dataset(
        f"folder:{found.path}",
        train_set,
        test_set,
        found.classes,
        mean,
        std,
        crop_padding=images.shape[2] // 8,
        flip=True,
        left_out=found.left_out,
    )


@dataclass
class Parts:
    """What lies in a folder of images. path: absolute."""

    path: Path
    classes: tuple[str, ...] = ()
    train: Samples = field(default_factory=list)
    test: Samples = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    """files that are no images by their names, by their endings"""
    aside: list[str] = field(default_factory=list)
    """folders that are no class, and hidden files, by path"""
    loose: int = 0
    """files beside the folders of the classes"""

    @property
    def left_out(self) -> str:
        """One line that says what is not among the images; empty where nothing is left out."""
        told = []
        if self.other:
            endings = ", ".join(
                f"{ending or 'without an ending'} {n:,}" for ending, n in self.other.most_common(MOST_NAMES)
            )
            more = ", ..." * (len(self.other) > MOST_NAMES)
            told.append(f"{_count(self.other.total(), 'file')} of no image format that Pillow reads ({endings}{more})")
        if self.aside:
            names = ", ".join(sorted(self.aside)[:MOST_NAMES]) + ", ..." * (len(self.aside) > MOST_NAMES)
            told.append(f"{len(self.aside):,} hidden or of a program's own ({names})")
        if self.loose:
            told.append(f"{_count(self.loose, 'file')} in no class's folder")
        return f"left out of {self.path}: {'; '.join(told)}" if told else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number > 1)}"


def list_parts(path: Path) -> Parts:
    """The classes and the images of training and of test set, in torchvision's order.

    Raises DataError where a part is missing or empty, or the classes of the two differ.
    """
    path = Path(os.path.abspath(path))
    found = Parts(path)
    test = "test" if os.path.isdir(path / "test") or not os.path.isdir(path / "val") else "val"
    classes, found.train = _list(found, "train")
    test_classes, found.test = _list(found, test)
    if classes != test_classes:
        differing = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise DataError(f"{path / 'train'} and {path / test} must hold the same classes, but differ in: {differing}")
    found.classes = tuple(classes)
    return found


def _list(found: Parts, part: str) -> tuple[list[str], Samples]:
    """The classes of a part and its samples; what is no image is noted."""
    folder = found.path / part
    classes: list[str] = []
    try:
        for entry in os.scandir(folder):
            if not entry.is_dir():
                found.loose += 1
            elif _is_aside(entry.name):
                found.aside.append(os.path.join(part, entry.name))
            else:
                classes.append(entry.name)
        classes.sort()
        samples = [
            (file, label) for label, name in enumerate(classes) for file in _images(found, os.path.join(part, name))
        ]
    except OSError as error:
        raise DataError(f"cannot read {folder}, which is to hold one folder of images a class: {error}") from error
    empty = sorted(set(range(len(classes))) - {label for _, label in samples})
    if empty or not classes:
        missing = f"no image of class {', '.join(classes[label] for label in empty)}" if empty else "no folder in it"
        raise DataError(f"{folder} has {missing}: it is to hold one folder of images a class")
    return classes, samples


def _images(found: Parts, folder: str) -> list[str]:
    """The images in a class's folder and the folders below it, by path below `found.path`."""
    endings, walked = image_endings(), []
    reached: Counter[tuple[int, int]] = Counter()
    for place, folders, files in os.walk(os.path.join(found.path, folder), onerror=_raise, followlinks=True):
        below = os.path.relpath(place, found.path)
        found.aside += [os.path.join(below, name) for name in folders if _is_aside(name)]
        folders[:] = [name for name in folders if not _is_aside(name)]
        walked.append((place, below, files))
        status = os.stat(place)
        reached[status.st_dev, status.st_ino] += 1
        if reached[status.st_dev, status.st_ino] > MOST_WAYS:
            raise DataError(f"{place} is reached by more than {MOST_WAYS} ways: remove links that lead in circles")
    images = []
    for _, below, files in sorted(walked):
        for name in sorted(files):
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                found.aside.append(os.path.join(below, name))
            elif ending in endings:
                images.append(os.path.join(below, name))
            else:
                found.other[ending] += 1
    return images


def _raise(error: OSError) -> None:
    raise error


def _is_aside(name: str) -> bool:
    return name.startswith(".") or name in NO_CLASS


def _cached_images(found: Parts, image_size: int | None) -> tuple[Tensor, Part, Part]:
    """uint8 [N, S, S, 3] and the digests of the parts, from the cache where the files are those it was made of."""
    # One file a folder and size, so that a changed folder replaces its old images in the cache.
    name = hashlib.sha256(f"{found.path}\n{image_size}".encode()).hexdigest()[:32]
    file = cache_root() / f"folder-{name}.pt"
    names = [name for name, _ in found.train + found.test]
    files = [os.path.join(found.path, name) for name in names]
    try:
        status = np.array([file_status(file) for file in files], dtype=np.int64)
    except OSError as error:
        raise unreadable(error) from error
    mark = hashlib.sha256(repr((FORMAT, image_size)).encode())
    mark.update(b"\0".join(map(os.fsencode, files)))
    mark.update(status.data)
    fingerprint = mark.hexdigest()
    stored = cache.read(file, fingerprint)
    if stored is None or stored.keys() != {"pixels", "digests"}:
        pixels, digests = _decode(files, image_size)
        stored = {"pixels": pixels, "digests": digests}
        cache.write(file, fingerprint, stored)
    contents, train = stored["digests"].numpy(), len(found.train)
    parts = [Part.of_files(names[some], status[some, 0], contents[some]) for some in (slice(train), slice(train, None))]
    return stored["pixels"], parts[0], parts[1]


def unreadable(error: OSError) -> DataError:
    return DataError(f"cannot read image {error.filename} ({error.strerror}): replace or remove it")


def _decode(files: Sequence[str], image_size: int | None) -> tuple[Tensor, Tensor]:
    """uint8 [N, S, S, 3] and the SHA-256 of each file, uint8 [N, 32], by several threads under a progress bar."""
    width, height = read_image(files[0]).size
    if image_size is None and height != width:
        raise DataError(f"{files[0]} is {width}x{height}, not square: set image_size to scale all images")
    size = image_size or height
    workers = min(os.cpu_count() or 1, MAX_THREADS) if height * width >= THREADED_PIXELS else 1
    digests = np.empty((len(files), 32), dtype=np.uint8)
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
            content = image_bytes(file)
            digests[i] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
            image = np.asarray(read_image(file, content))
            if image_size is not None:
                planes = torch.tensor(image).permute(2, 0, 1)[None]
                image = resize(planes, image_size)[0].permute(1, 2, 0).numpy()
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
    return torch.from_numpy(pixels), torch.from_numpy(digests)

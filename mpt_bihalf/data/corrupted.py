"""Corrupted test images, in the files of CIFAR-10-C (Hendrycks & Dietterich 2019), read and made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import parse_json, read_bytes, write_json, write_whole
from .dataset import DataError, Dataset, ImageSet

SEVERITIES = 5
LABELS, ABOUT = "labels.npy", "made.json"
# The library that corruptions are made by, and the least side of its images.
LIBRARY, LEAST = "imagecorruptions-imaug", 32


class Corrupted:
    """A folder of corrupted test images: NAME.npy for each corruption, uint8 [5 N, H, W, C], one severity after the
    other, and labels.npy, the class of each.

    Raises DataError for a folder that is none, or not of the dataset's images.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.folder, self._shape = folder, dataset.test.shape
        files = sorted(folder.glob("*.npy")) if folder.is_dir() else []
        self.names = [file.stem for file in files if file.name != LABELS]
        if not self.names:
            raise DataError(f"{folder} holds no corrupted images: files like brightness.npy, and {LABELS}")
        labels = self._read(folder / LABELS)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or len(labels) % SEVERITIES:
            raise DataError(f"{folder / LABELS} must hold whole numbers, as many for each of {SEVERITIES} severities")
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise DataError(f"{folder / LABELS} has classes beyond the {dataset.num_classes} of {dataset.name}")
        self._labels = torch.from_numpy(labels.astype(np.int64))
        self.count = len(labels) // SEVERITIES
        _check_made(folder, dataset)
        for name in self.names:
            self.images(name, 1, first=1)

    @property
    def called(self) -> str:
        """Whose corruptions these are: the library and its version, or what the folder is called."""
        return " ".join(str(about(self.folder).get("made_by", self.folder.name)).split())[:80]

    def digest(self) -> str:
        """SHA-256 of all the files, by name."""
        found = hashlib.sha256()
        for file in sorted(self.folder.glob("*.npy")):
            found.update(file.name.encode())
            with open(file, "rb") as opened:
                while part := opened.read(2**24):
                    found.update(part)
        return found.hexdigest()

    def images(self, name: str, severity: int, first: int = 0) -> ImageSet:
        """The images of a corruption at a severity from 1 on; the `first` ones alone, or for 0 all."""
        pixels = self._read(self.folder / f"{name}.npy")
        channels, *size = self._shape
        wanted = SEVERITIES * self.count, *size, channels
        if pixels.dtype != np.uint8 or pixels.shape != wanted:
            raise DataError(
                f"{self.folder / name}.npy must be uint8 {[*wanted]}, not {pixels.dtype} {[*pixels.shape]}: the images "
                f"are to be those of the runs, and as many as there are labels"
            )
        start = (severity - 1) * self.count
        part = slice(start, start + (min(first, self.count) or self.count))
        return ImageSet(torch.from_numpy(np.array(pixels[part])).permute(0, 3, 1, 2), self._labels[part])

    def _read(self, file: Path) -> np.ndarray:
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise DataError(f"{self.folder} has no {file.name}") from None
        except Exception as fault:  # of what is something else NumPy raises many kinds, with advice for its own callers
            raise DataError(f"{file} is no array of numbers in a file of NumPy's") from fault
        if not isinstance(array, np.ndarray):
            raise DataError(f"{file} is no array of numbers in a file of NumPy's")
        return array


def about(folder: Path) -> dict[str, Any]:
    """What a folder that was made says of itself; nothing where it was not."""
    try:
        content = parse_json(read_bytes(folder / ABOUT), folder / ABOUT)
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_to_make(folder: Path) -> bool:
    """Whether a folder is none yet, or its making was cut short; one with files from elsewhere is neither."""
    return about(folder).get("whole") is False or not any(folder.glob("*.npy"))


def _check_made(folder: Path, dataset: Dataset) -> None:
    of = dataset.digest.sha256
    if about(folder).get("of", of) != of:
        raise DataError(f"{folder} was made of other images than {dataset.name} has: remove it, or name another folder")


def make_corrupted(folder: Path, dataset: Dataset, told: Callable[[list[str]], Iterator[str]] = iter) -> None:
    """Corrupt the test images of a dataset by a library, into the files of CIFAR-10-C; the last says by what.

    told: goes through the names of the corruptions, a progress bar say. What is there already stays as it is. Where a
    corruption draws, it draws anew each time: keep the folder to compare networks on the same images.

    Raises DataError where the library is not installed, and for images that it does not take.
    """
    try:
        import imagecorruptions
    except ImportError:
        raise DataError(
            f"corrupted images are made by {LIBRARY}: pip install 'mpt_bihalf[robustness]', or name a folder of them"
        ) from None
    if not isinstance(dataset.test, ImageSet) or dataset.image_size < LEAST or dataset.in_channels not in (1, 3):
        raise DataError(
            f"{LIBRARY} takes images in memory of {LEAST} pixels a side or more, grey or in colour; {dataset.name} has "
            f"{dataset.image_size} pixels: train with --image-size {LEAST}, or name a folder of corrupted images"
        )
    _check_made(folder, dataset)
    if not about(folder) and any(folder.glob("*.npy")):
        raise DataError(f"{folder} holds images that were not made here: they stay as they are; name another folder")
    told_of = {"made_by": f"{LIBRARY} {version(LIBRARY)}", "of": dataset.digest.sha256}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ABOUT, told_of | {"whole": False})
    images = dataset.test.images.cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    for number, name in enumerate(told(list(imagecorruptions.get_corruption_names("common")))):
        if (folder / f"{name}.npy").exists():
            continue
        np.random.seed(number)  # noqa: NPY002
        corrupted = [
            imagecorruptions.corrupt(np.ascontiguousarray(image), severity, name)
            for severity in range(1, SEVERITIES + 1)
            for image in images
        ]
        _write(folder / f"{name}.npy", _like(dataset, np.stack(corrupted)))
    _write(folder / LABELS, dataset.test.labels.cpu().repeat(SEVERITIES).numpy())
    write_json(folder / ABOUT, told_of | {"whole": True})


def _like(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    """Grey again where the images are."""
    if dataset.in_channels == 3:
        return pixels
    grey: Tensor = torch.from_numpy(pixels).float().mean(3, keepdim=True).round().byte()
    return grey.numpy()


def _write(file: Path, array: np.ndarray) -> None:
    write_whole(file, lambda opened: np.save(opened, array))

"""Data sets by name.

To add one, write a file with a loader, a function (data_root: Path, image_size: int | None) -> Dataset that raises
DataError for whatever a user can put right, and enter it in DATASETS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .cifar import load_cifar10, load_cifar100
from .dataset import DataError, Dataset
from .digits import load_digits
from .fashion_mnist import load_fashion_mnist
from .folder import load_folder
from .locations import data_folder

DATASETS: dict[str, Callable[[Path, int | None], Dataset]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}

FOLDER_PREFIX = "folder:"


def check_name(name: str) -> None:
    """Raise DataError unless `name` is in DATASETS or is folder:PATH. Nothing is loaded or looked for."""
    if name in DATASETS or (name.startswith(FOLDER_PREFIX) and name != FOLDER_PREFIX):
        return
    known = ", ".join([*DATASETS, FOLDER_PREFIX + "PATH"])
    raise DataError(f"unknown data set {name!r}: choose one of {known}")


def load_dataset(name: str, data_root: str | None = None, image_size: int | None = None) -> Dataset:
    """The data set of that name, in host memory.

    name: a key of DATASETS, or folder:PATH for PATH/train/<class>/* and PATH/test/<class>/*.
    data_root: where to look for data and to download it to; by default "data" in the cache folder.
    image_size: height and width, in pixels, to scale the images to; by default they stay as they are.

    Raises DataError for an unknown name, an image size below 1, and data that are missing or damaged.
    """
    check_name(name)
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size {image_size} must be 1 or more")
    if name.startswith(FOLDER_PREFIX):
        return load_folder(Path(name.removeprefix(FOLDER_PREFIX)), image_size)
    return DATASETS[name](data_folder(data_root), image_size)

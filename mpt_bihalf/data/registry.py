"""Data sets by name.

To add one, write a file with a loader, a function (data_root: Path, image_size: int | None) -> Dataset that raises
DataError for whatever a user can put right, and enter it in DATASETS, in AUGMENTED what it does to training images, and
in EMBEDDED if it takes no files, or in IS_HERE if it takes some.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..files import expanded
from .cifar import cifar_is_here, load_cifar
from .dataset import DataError, Dataset
from .digits import load_digits
from .fashion_mnist import fashion_mnist_folder, load_fashion_mnist
from .folder import load_folder
from .imagenet import load_imagenet
from .locations import data_folder

Loader = Callable[[Path, int | None], Dataset]

# Data sets that come with a library, so that no folder is looked at.
EMBEDDED = ("digits",)

DATASETS: dict[str, Loader] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": partial(load_cifar, "CIFAR10"),
    "cifar100": partial(load_cifar, "CIFAR100"),
    "imagenet": lambda data_root, image_size: load_imagenet(data_root / "imagenet", image_size),
}
# Data sets in a folder of the user's: PREFIX:PATH.
FOLDERS: dict[str, Loader] = {
    "folder": load_folder,
    "imagenet": load_imagenet,
}
# Of those that are downloaded or laid down by the user: whether a folder has them.
IS_HERE: dict[str, Callable[[Path], bool]] = {
    "fashion-mnist": lambda data_root: fashion_mnist_folder(data_root) is not None,
    "cifar10": partial(cifar_is_here, "CIFAR10"),
    "cifar100": partial(cifar_is_here, "CIFAR100"),
    "imagenet": lambda data_root: (data_root / "imagenet").is_dir(),
}
# Of both, by name or PREFIX: whether training images are mirrored, and whether they are cropped at random, unless a run
# says otherwise. Of a data set that is not in here only its loader knows.
AUGMENTED: dict[str, tuple[bool, bool]] = {
    "digits": (False, False),
    "fashion-mnist": (True, True),
    "cifar10": (True, True),
    "cifar100": (True, True),
    "imagenet": (True, True),
    "folder": (True, True),
}


def check_name(name: str) -> None:
    """Raise DataError unless `name` is in DATASETS, or PREFIX:PATH of FOLDERS. Nothing is loaded or looked for."""
    prefix, colon, path = name.partition(":")
    if name in DATASETS or (colon and path and prefix in FOLDERS):
        return
    known = ", ".join([*DATASETS, *(f"{prefix}:PATH" for prefix in FOLDERS)])
    raise DataError(f"unknown data set {name!r}: choose one of {known}")


def short_data(name: str) -> str:
    """The data set's name as titles and folders have it: of folder:PATH the last part, of imagenet:PATH imagenet."""
    prefix, _, path = name.partition(":")
    return Path(path).name if prefix == "folder" else prefix


def is_here(name: str, data_root: str | None = None) -> bool:
    """Whether the data set of that name lies where it is looked for, whole or not, so that nothing is downloaded."""
    path = name.partition(":")[2]
    if path:
        return os.path.isdir(os.path.expanduser(path))
    look = IS_HERE.get(name)
    return look is None or look(data_folder(data_root))


def own_augmentation(name: str) -> tuple[bool | None, bool | None]:
    """Whether the data set's training images are mirrored, and whether cropped at random, unless a run says otherwise.

    None, None for a data set of which only its loader knows. Nothing is loaded.
    """
    return AUGMENTED.get(name.partition(":")[0], (None, None))


def load_dataset(name: str, data_root: str | None = None, image_size: int | None = None) -> Dataset:
    """The data set of that name, in host memory, or in files that are read batch by batch (imagenet).

    name: a key of DATASETS; folder:PATH for `PATH/train/<class>/*` and `PATH/test/<class>/*`; or imagenet:PATH.
    data_root: where to look for data and to download it to; by default "data" in the cache folder.
    image_size: height and width, in pixels, to scale the images to; by default they stay as they are.

    Raises DataError for an unknown name, an image size below 1, and data that are missing or damaged.
    """
    check_name(name)
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size {image_size} must be 1 or more")
    prefix, _, path = name.partition(":")
    try:
        place = expanded(path) if path else Path() if name in EMBEDDED else data_folder(data_root)
    except ValueError as fault:
        raise DataError(str(fault)) from None
    return (FOLDERS[prefix] if path else DATASETS[name])(place, image_size)

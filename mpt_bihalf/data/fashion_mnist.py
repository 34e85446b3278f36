"""Fashion-MNIST, read and downloaded by torchvision (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747)."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path
from typing import Any

from .dataset import DataError, Dataset, ImageSet
from .download import fetch

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# In bytes, above that of the training images. Packed, any number takes few.
LARGEST = 2**26
LAYOUT = Path("FashionMNIST", "raw")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def load_fashion_mnist(data_root: Path, image_size: int | None) -> Dataset:
    """60,000 training and 10,000 test images, uint8 [N, 1, 28, 28] unless resized, of 10 kinds of clothing.

    Looked for in data_root as torchvision lays it out, then as the four files, plain or .gz, in data_root itself, then
    where Debian's package dataset-fashion-mnist puts them; then downloaded into data_root.

    Clothes mirrored are clothes still, so it is flipped; but most pieces fill their frame, so the crop moves by 2 of
    28 pixels rather than by CIFAR's 4 of 32. Standardised by the training set's own mean and std.
    """
    folder = fashion_mnist_folder(data_root)
    if folder is None:
        from torchvision.datasets import FashionMNIST  # here, because importing it takes a second

        remedy = (
            f"put {', '.join(FILES)}, plain or .gz, there, or name a folder that has them with --data-root, "
            "or install the Debian package dataset-fashion-mnist"
        )
        fetch("fashion-mnist", data_root, LAYOUT.parts[0], lambda folder: FashionMNIST(folder, download=True), remedy)
        folder = data_root / LAYOUT
    train, test = _read(folder)
    classes = tuple(train.classes)
    train_set, test_set = (_image_set(read, folder).resized(image_size) for read in (train, test))
    mean, std = train_set.statistics()
    padding = 2 if image_size is None else round(image_size / 14)
    return Dataset("fashion-mnist", train_set, test_set, classes, mean, std, crop_padding=padding, flip=True)


def fashion_mnist_folder(data_root: Path) -> Path | None:
    """The folder that has all the files; None where there is none."""
    folders = (data_root / LAYOUT, data_root, DEBIAN_FOLDER)
    return next((folder for folder in folders if all(_find(folder, file) for file in FILES)), None)


def _find(folder: Path, file: str) -> Path | None:
    # os.path, unlike pathlib before Python 3.14, takes a folder one may not look into for one without the file.
    return next((path for path in (folder / file, folder / f"{file}.gz") if os.path.isfile(path)), None)


def _read(folder: Path) -> tuple[Any, Any]:
    """torchvision's training and test set of the files in `folder`, which is left as it is."""
    from torchvision.datasets import FashionMNIST  # here, because importing it takes a second

    try:
        with tempfile.TemporaryDirectory() as staging:
            raw = Path(staging) / LAYOUT
            raw.mkdir(parents=True)
            for file in FILES:
                path = _find(folder, file)
                assert path is not None, f"{file} has gone"
                with (
                    (gzip.open if path.suffix == ".gz" else open)(path, "rb") as source,
                    open(raw / file, "wb") as copy,
                ):
                    copy.write(source.read(LARGEST))
                    if source.read(1):
                        raise ValueError(f"{path.name} has more than {LARGEST:,} bytes in it")
            return FashionMNIST(staging, train=True), FashionMNIST(staging, train=False)
    except Exception as error:  # a damaged file may trip the decompression or the parser anywhere
        raise _damaged(folder, str(error) or type(error).__name__) from error


def _image_set(read: Any, folder: Path) -> ImageSet:
    images, labels = read.data[:, None], read.targets
    if len(images) != len(labels) or len(labels) == 0 or labels.max() >= len(read.classes):
        raise _damaged(folder, f"{len(images)} images with {len(labels)} labels, or labels beyond the classes")
    return ImageSet(images, labels)


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(
        f"cannot read fashion-mnist from {folder} ({reason}): restore its files, or move them away to download afresh"
    )

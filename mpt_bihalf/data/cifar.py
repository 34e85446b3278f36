"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read and downloaded by torchvision."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from .dataset import DataError, Dataset, ImageSet
from .download import fetch

# torchvision is imported where it is used: it takes a second, which `--help` and other data sets need not wait for.


STATISTICS = {
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def cifar_is_here(kind: str, data_root: Path) -> bool:
    """kind: CIFAR10 or CIFAR100."""
    from torchvision import datasets

    return os.path.exists(data_root / getattr(datasets, kind).base_folder)


def load_cifar(kind: str, data_root: Path, image_size: int | None) -> Dataset:
    """50,000 training and 10,000 test images, uint8 [N, 3, 32, 32] unless resized, of 10 classes, or 100 (CIFAR100)."""
    from torchvision import datasets

    name, source = kind.lower(), getattr(datasets, kind)
    if not cifar_is_here(kind, data_root):
        _fetch(name, source, data_root)
    try:
        # The pickles are of Python 2's days, and recent NumPy remarks on how they spell a dtype.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"dtype\(\)")
            train, test = source(str(data_root), train=True), source(str(data_root), train=False)
    except (RuntimeError, OSError) as error:
        raise DataError(f"cannot read {name}: {_fault(source, data_root, error)}") from error
    # The usual 4 pixels of padding to 32 of image, kept in proportion.
    padding = 4 if image_size is None else image_size // 8
    train_set, test_set = (
        ImageSet(torch.from_numpy(read.data).permute(0, 3, 1, 2), torch.tensor(read.targets)).resized(image_size)
        for read in (train, test)
    )
    return Dataset(name, train_set, test_set, tuple(train.classes), *STATISTICS[kind], crop_padding=padding, flip=True)


def _fetch(name: str, source: Any, data_root: Path) -> None:
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive = data_root / source.filename
    if os.path.exists(archive) and not check_integrity(archive, source.tgz_md5):
        raise DataError(
            f"{archive} is damaged or incomplete (its MD5 sum is wrong): move it away to download it afresh"
        )

    def download(folder: str) -> None:
        if os.path.exists(archive):
            extract_archive(str(archive), folder)
        else:
            source(folder, download=True)

    remedy = f"put {source.filename} from {source.url} there, or name a folder that has it with --data-root"
    fetch(name, data_root, source.base_folder, download, remedy)


def _fault(source: Any, data_root: Path, error: Exception) -> str:
    """What is wrong with the files under data_root, which torchvision says only for all of them together."""
    from torchvision.datasets.utils import check_integrity

    folder = data_root / source.base_folder
    meta = (source.meta["filename"], source.meta["md5"])
    for filename, md5 in (*source.train_list, *source.test_list, meta):
        if not check_integrity(folder / filename, md5):
            state = "damaged (its MD5 sum is wrong)" if os.path.exists(folder / filename) else "missing"
            return f"{folder / filename} is {state}; restore it, or move {folder} away to download afresh"
    return f"{folder}: {error}"

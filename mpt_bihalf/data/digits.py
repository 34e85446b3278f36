"""The 1,797 handwritten digits, 8x8 and grey, that come with scikit-learn: a data set that needs no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from .dataset import Dataset, ImageSet, stratified_split

TEST_IMAGES = 360
# Where scikit-learn has them: rows of 64 grey levels from 0 to 16 and the digit.
FILE = "datasets/data/digits.csv.gz"


def load_digits(data_root: Path, image_size: int | None) -> Dataset:
    """1,437 training and 360 test images, uint8 [N, 1, 8, 8] unless resized; `data_root` is not looked at.

    The split is ours and fixed. Neither cropped nor mirrored in training: a shift by a pixel cuts an 8x8 digit, and a
    mirrored digit is another sign. Standardised by the training set's own mean and std.
    """
    rows = torch.from_numpy(_rows())
    images = (rows[:, :-1].view(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    labels = rows[:, -1].long()
    train, test = (part.resized(image_size) for part in stratified_split(ImageSet(images, labels), TEST_IMAGES))
    mean, std = train.statistics()
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("digits", train, test, classes, mean, std, crop_padding=0, flip=False)


def _rows() -> np.ndarray:
    """The file's rows, float64 [1797, 65]. Read without scikit-learn, which takes each process a second to import."""
    found = find_spec("sklearn")
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder) / FILE
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # of another version, or a reason why it is not there

    digits = load_digits()
    return np.column_stack([digits.data, digits.target]).astype(np.float64)

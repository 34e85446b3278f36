"""The 1,797 handwritten digits, 8x8 and grey, that come with scikit-learn: a data set that needs no download."""

from __future__ import annotations

from pathlib import Path

import torch

from .dataset import Dataset, ImageSet, stratified_split

TEST_IMAGES = 360


def load_digits(data_root: Path, image_size: int | None) -> Dataset:
    """1,437 training and 360 test images, uint8 [N, 1, 8, 8] unless resized; `data_root` is not looked at.

    The split is ours and fixed. Neither cropped nor mirrored in training: a shift by a pixel cuts an 8x8 digit, and a
    mirrored digit is another sign. Standardised by the training set's own mean and std.
    """
    from sklearn import datasets  # here, because importing it takes a second that no other data set needs

    digits = datasets.load_digits()
    # The grey levels are 0 to 16.
    images = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).long()
    train, test = (part.resized(image_size) for part in stratified_split(ImageSet(images, labels), TEST_IMAGES))
    mean, std = train.statistics()
    classes = tuple(str(digit) for digit in digits.target_names)
    return Dataset("digits", train, test, classes, mean, std, crop_padding=0, flip=False)

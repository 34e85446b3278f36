from __future__ import annotations

import numpy as np
import torch
from sklearn import datasets

from mpt_bihalf.data import load_dataset, own_augmentation


def test_shape_and_ways_of_the_digits() -> None:
    dataset = load_dataset("digits", data_root="/no/such/place")
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert (dataset.num_classes, dataset.in_channels, dataset.image_size) == (10, 1, 8)
    assert dataset.classes == tuple("0123456789")
    assert (dataset.crop_padding, dataset.flip) == (0, False)
    assert own_augmentation("digits") == (dataset.flip, dataset.random_crop)


def test_augmented_digits_are_mirrored_and_padded_by_an_eighth() -> None:
    for size, padding in ((None, 1), (32, 4)):
        dataset = load_dataset("digits", image_size=size).augmented(flip=True, crop=True)
        assert (dataset.crop_padding, dataset.flip) == (padding, True)


def test_split_takes_every_fifth_image_of_those_sorted_by_class() -> None:
    raw = datasets.load_digits()
    chosen = sorted(range(1797), key=lambda i: (raw.target[i], i))
    dataset = load_dataset("digits")
    # The quota i * 360 / 1797 first reaches 1 at the fifth image, and so on.
    expected = sorted(chosen[-(-1797 * k // 360) - 1] for k in range(1, 361))
    scaled = np.rint(raw.images[expected] * 255 / 16).astype(np.uint8)
    assert np.array_equal(dataset.test.images[:, 0].numpy(), scaled)
    assert np.array_equal(dataset.test.labels.numpy(), raw.target[expected])
    rest = np.setdiff1d(np.arange(1797), expected)
    assert np.array_equal(dataset.train.labels.numpy(), raw.target[rest])


def test_every_digit_gives_a_fifth_to_the_test_set() -> None:
    dataset = load_dataset("digits")
    test, train = dataset.test.labels.bincount(), dataset.train.labels.bincount()
    assert ((test - (test + train) / 5).abs() <= 1).all()


def test_grey_levels_span_the_bytes_and_standardise_by_their_own() -> None:
    dataset = load_dataset("digits")
    pixels = dataset.train.images.double() / 255
    assert set(dataset.train.images.unique().tolist()) == {round(level * 255 / 16) for level in range(17)}
    assert abs(dataset.mean[0] - pixels.mean().item()) < 1e-12
    assert abs(dataset.std[0] - pixels.std(correction=0).item()) < 1e-12


def test_resized_digits_standardise_by_what_they_have_become() -> None:
    dataset = load_dataset("digits", image_size=16)
    assert dataset.train.images.shape == (1437, 1, 16, 16)
    assert abs(dataset.std[0] - (dataset.train.images.double() / 255).std(correction=0).item()) < 1e-12
    plain = load_dataset("digits")
    assert torch.equal(dataset.test.labels, plain.test.labels)
    assert dataset.digest == plain.digest == dataset.to("cpu").digest

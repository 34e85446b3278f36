from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpt_bihalf.data import DataError, Dataset, ImageSet
from mpt_bihalf.data.dataset import resize, stratified_split


def numbered(labels: list[int]) -> ImageSet:
    """Images whose one pixel is their own index."""
    return ImageSet(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels))


def test_error_is_one_line_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DataError("no data:\n\n  tried a\n")))
    assert str(error) == "no data: tried a" and isinstance(error, ValueError)


def test_image_set_keeps_values_and_lies_channels_last(device: torch.device) -> None:
    images = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8)
    held = ImageSet(images, torch.arange(5)).to(device)
    assert torch.equal(held.images.cpu(), images) and torch.equal(held.labels.cpu(), torch.arange(5))
    assert held.images.is_contiguous(memory_format=torch.channels_last)
    assert held.images.device.type == held.labels.device.type == device.type
    assert len(held) == 5


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2)),
    ],
)
def test_image_set_refuses_wrong_types_and_lengths(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(DataError, match="must be"):
        ImageSet(images, labels)


def test_statistics_are_those_of_numpy(colour: Dataset, device: torch.device) -> None:
    scaled = colour.train.images.numpy().astype(np.float64) / 255
    mean, std = colour.train.to(device).statistics()
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_constant_channel_has_deviation_one() -> None:
    mean, std = ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)).statistics()
    assert (mean, std) == ((0.0,), (1.0,))


def test_dataset_tells_its_shape(colour: Dataset) -> None:
    assert (colour.num_classes, colour.in_channels, colour.image_size) == (4, 3, 12)


def test_dataset_moves_to_a_device_without_values(colour: Dataset) -> None:
    moved = colour.to(torch.device("meta"))
    tensors = (moved.train.images, moved.train.labels, moved.test.images, moved.test.labels)
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.mean == colour.mean


@pytest.mark.parametrize("flip", [None, False, True])
@pytest.mark.parametrize(("crop", "padding", "kept"), [(None, 0, 3), (False, 0, 0), (True, 1, 3)])
def test_augmentation_is_the_datasets_own_unless_told_otherwise(
    colour: Dataset, flip: bool | None, crop: bool | None, padding: int, kept: int
) -> None:
    bare = replace(colour, crop_padding=0, flip=False)
    for dataset, own_flip, expected in ((bare, False, padding), (colour, True, kept)):  # an eighth of 12 pixels is 1
        changed = dataset.augmented(flip, crop)
        assert changed == replace(dataset, flip=own_flip if flip is None else flip, crop_padding=expected)
        assert changed.random_crop == (expected > 0)


def test_dataset_refuses_shapes_that_do_not_fit(colour: Dataset) -> None:
    oblong = ImageSet(colour.train.images[:, :, :10], colour.train.labels)
    with pytest.raises(DataError, match="set image_size"):
        replace(colour, train=oblong)
    with pytest.raises(DataError, match="10x12 are not square"):
        replace(colour, train=oblong, test=oblong)
    with pytest.raises(DataError, match="3 channels, but 1 means"):
        replace(colour, mean=(0.5,))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=200), st.data())
def test_split_is_a_partition_that_shares_out_every_class(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(labels) - 1))
    left, taken = stratified_split(numbered(labels), count)
    indices = [part.images.flatten().tolist() for part in (left, taken)]
    assert len(taken) == count
    assert sorted(indices[0] + indices[1]) == list(range(len(labels)))
    assert indices[0] == sorted(indices[0]) and indices[1] == sorted(indices[1])
    assert [labels[i] for i in indices[1]] == taken.labels.tolist()
    for label in set(labels):
        share = labels.count(label) * count / len(labels)
        assert abs((taken.labels == label).sum().item() - share) <= 1


def test_hold_out_takes_the_same_share_each_time(colour: Dataset, device: torch.device) -> None:
    rest, held = colour.to(device).hold_out(0.2)
    again = colour.hold_out(0.2)[1]
    assert len(held) == 21 and len(rest.train) == 82
    assert torch.equal(held.images.cpu(), again.images) and torch.equal(held.labels.cpu(), again.labels)
    assert held.images.device.type == device.type
    assert (rest.mean, rest.std, rest.test.labels.tolist()) == (colour.mean, colour.std, colour.test.labels.tolist())


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_hold_out_refuses_what_is_no_share(colour: Dataset, share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        colour.hold_out(share)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_hold_out_refuses_to_leave_a_part_empty(colour: Dataset, share: float) -> None:
    with pytest.raises(DataError, match=f"{share} of 103"):
        colour.hold_out(share)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [5, 12, 20, 31])
def test_resize_is_pillows_bilinear_to_within_rounding(size: int, channels: int) -> None:
    images = torch.randint(256, (3, channels, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    planes = [Image.fromarray(plane.numpy()) for plane in images.flatten(0, 1)]
    pillows = np.stack([np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR)) for plane in planes])
    difference = resize(images, size).flatten(0, 1).numpy().astype(int) - pillows.astype(int)
    assert np.abs(difference).max() <= 1
    assert abs(difference.mean()) < 0.25  # rounded, not cut off, which would lose half a level on average


def test_resize_leaves_images_that_fit_alone() -> None:
    images = torch.randint(256, (3, 1, 9, 9), dtype=torch.uint8)
    assert resize(images, 9) is images


@pytest.mark.parametrize("shape", [(10, 30), (30, 10)])
def test_resize_crops_the_longer_side_about_its_centre(shape: tuple[int, int]) -> None:
    middle, outside = 200, 10
    images = torch.full((1, 1, *shape), outside, dtype=torch.uint8)
    (images[:, :, :, 10:20] if shape[1] == 30 else images[:, :, 10:20])[:] = middle
    assert torch.equal(resize(images, 10), torch.full((1, 1, 10, 10), middle, dtype=torch.uint8))


def test_resize_treats_every_image_alike_across_chunks() -> None:
    image = torch.randint(256, (1, 1, 6, 6), dtype=torch.uint8)
    many = resize(image.repeat(600, 1, 1, 1), 4)
    assert torch.equal(many, resize(image, 4).repeat(600, 1, 1, 1))

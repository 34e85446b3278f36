from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from mpt_bihalf.data import DataError, Dataset, ImageSet, evaluation_batches, load_dataset, training_batches
from mpt_bihalf.data.batches import _draws


def bytes_of(x: Tensor, dataset: Dataset) -> Tensor:
    """Undo the standardising: uint8, as the images were."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
    return ((x.cpu() * std + mean) * 255).round().to(torch.uint8)


def augmented(image: Tensor, padding: int, top: int, left: int, mirrored: bool) -> Tensor:
    """One image the plain way, with NumPy: pad, crop, mirror."""
    size = image.shape[-1]
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    crop = padded[:, top : top + size, left : left + size]
    return torch.from_numpy((crop[:, :, ::-1] if mirrored else crop).copy())


@pytest.mark.parametrize(("padding", "flip"), [(3, True), (3, False), (0, True), (0, False)])
def test_augmentation_is_pad_crop_flip_of_each_image(
    colour: Dataset, device: torch.device, padding: int, flip: bool
) -> None:
    dataset = colour.augmented(flip=flip, crop=padding > 0)
    draws = _draws(103, 2 * padding + 1, seed=5, epoch=2).T.tolist()
    seen = 0
    for x, y in training_batches(dataset.to(device), 16, seed=5, epoch=2):
        for got, label in zip(bytes_of(x, dataset), y.tolist(), strict=True):
            index, top, left, mirrored = draws[seen]
            expected = augmented(dataset.train.images[index], padding, top, left, bool(mirrored and flip))
            assert torch.equal(got, expected)
            assert label == dataset.train.labels[index]
            seen += 1
    assert seen == 96  # 103 images: the last 7 do not fill a batch


def test_draws_cover_the_images_and_every_crop_and_flip_evenly() -> None:
    order, top, left, mirrored = _draws(90_000, 9, seed=0, epoch=0)
    assert torch.equal(order.sort().values, torch.arange(90_000))
    for draw, choices in ((top, 9), (left, 9), (top * 9 + left, 81), (mirrored, 2), (mirrored * 9 + top, 18)):
        counts = draw.bincount(minlength=choices).double()
        expected = 90_000 / choices
        assert len(counts) == choices
        assert (counts - expected).abs().max() < 5 * expected**0.5


def test_batches_are_standardised_float_channels_last(colour: Dataset, device: torch.device) -> None:
    x, y = next(training_batches(colour.to(device), 32, seed=0, epoch=0))
    assert (x.dtype, y.dtype, x.shape, y.shape) == (torch.float32, torch.int64, (32, 3, 12, 12), (32,))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.device.type == y.device.type == device.type


def test_standardising_is_torchvisions(colour: Dataset, device: torch.device) -> None:
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(colour.mean, colour.std)])
    got = torch.cat([x.cpu() for x, _ in evaluation_batches(colour.test.to(device), colour, 6)])
    torch.testing.assert_close(got, transform(colour.test.images), rtol=1e-5, atol=1e-5, check_stride=False)


def test_padding_is_black_before_standardising(colour: Dataset) -> None:
    white = ImageSet(torch.full((64, 3, 12, 12), 255, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))
    x, _ = next(training_batches(replace(colour, train=white), 64, seed=0, epoch=0))
    for channel, (mean, std) in enumerate(zip(colour.mean, colour.std, strict=True)):
        values = sorted(set(x[:, channel].flatten().tolist()))
        assert values == pytest.approx([-mean / std, (1 - mean) / std], rel=1e-5)


def test_epoch_depends_on_seed_and_epoch_alone(colour: Dataset) -> None:
    def first(seed: int, epoch: int) -> Tensor:
        return next(training_batches(colour, 50, seed, epoch))[0]

    once = first(1, 2)
    torch.manual_seed(123)  # the global stream has no say
    torch.rand(7)
    assert torch.equal(once, first(1, 2))
    for other in ((2, 1), (1, 3), (2, 2), (3, 0)):
        assert not torch.equal(once, first(*other))
    assert not torch.equal(first(1, 23), first(12, 3))


@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_from_a_later_batch_on_an_epoch_is_the_same(colour: Dataset, first: int) -> None:
    whole, rest = list(training_batches(colour, 20, 1, 2)), list(training_batches(colour, 20, 1, 2, first=first))
    assert len(whole) == 5
    assert len(rest) == 5 - first
    for (x, y), (same_x, same_y) in zip(whole[first:], rest, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)


def test_drawing_leaves_the_global_random_state_alone(colour: Dataset) -> None:
    before = torch.get_rng_state()
    list(training_batches(colour, 50, 0, 0))
    assert torch.equal(before, torch.get_rng_state())


def test_without_augmentation_the_shuffled_images_are_as_stored(colour: Dataset) -> None:
    order = _draws(103, 7, seed=0, epoch=0)[0]
    x = torch.cat([x for x, _ in training_batches(colour.augmented(False, False), 1, 0, 0)])
    assert torch.equal(bytes_of(x, colour), colour.train.images[order])
    assert order.tolist() != list(range(103))


def test_batch_size_does_not_change_what_happens_to_an_image(colour: Dataset) -> None:
    small = torch.cat([x for x, _ in training_batches(colour, 10, 0, 0)])
    large = torch.cat([x for x, _ in training_batches(colour, 50, 0, 0)])
    assert torch.equal(small[:100], large)


def test_stored_images_stay_as_they_were(colour: Dataset) -> None:
    before = colour.train.images.clone()
    for x, _ in training_batches(colour, 16, 0, 0):
        x.zero_()
    for x, _ in evaluation_batches(colour.train, colour, 16):
        x.zero_()
    assert torch.equal(before, colour.train.images)


def test_evaluation_sees_every_image_once_in_order(colour: Dataset) -> None:
    batches = list(evaluation_batches(colour.test, colour, 8))
    assert [len(x) for x, _ in batches] == [8, 8, 4]
    assert torch.equal(bytes_of(torch.cat([x for x, _ in batches]), colour), colour.test.images)
    assert torch.equal(torch.cat([y for _, y in batches]), colour.test.labels)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)


def test_batches_need_no_values_so_nothing_waits_for_the_device(colour: Dataset) -> None:
    # A meta tensor raises as soon as a value is asked for, as .item() and boolean indexing do.
    meta = colour.to("meta")
    training = list(training_batches(meta, 20, 0, 0))
    evaluation = list(evaluation_batches(meta.test, meta, 8))
    assert [tuple(x.shape) for x, _ in training] == [(20, 3, 12, 12)] * 5
    assert [len(y) for _, y in evaluation] == [8, 8, 4]
    assert all(x.is_meta and y.is_meta for x, y in training + evaluation)


def test_impossible_batch_sizes_are_refused_at_the_call(colour: Dataset) -> None:
    with pytest.raises(DataError, match="batch size 104 exceeds the 103 training images"):
        training_batches(colour, 104, 0, 0)
    with pytest.raises(DataError, match="batch size 0"):
        training_batches(colour, 0, 0, 0)
    with pytest.raises(DataError, match="batch size -1"):
        evaluation_batches(colour.test, colour, -1)
    assert len(list(training_batches(colour, 103, 0, 0))) == 1


@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_of_all_processes_are_the_batch_of_one(processes: int) -> None:
    dataset = load_dataset("digits")
    whole = list(training_batches(dataset, 64, seed=3, epoch=1))
    shares = [training_batches(dataset, 64, seed=3, epoch=1, share=(rank, processes)) for rank in range(processes)]
    for (x, y), *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)
    each = [list(evaluation_batches(dataset.test, dataset, 100, share=(rank, processes))) for rank in range(processes)]
    assert sorted(len(y) for batches in each for _, y in batches) == [60, 100, 100, 100]
    seen = torch.cat([y for _, y in (each[i % processes][i // processes] for i in range(4))])
    assert torch.equal(seen, dataset.test.labels)


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(DataError, match="batch size 64 cannot be divided evenly among 3 processes"):
        training_batches(load_dataset("digits"), 64, seed=0, epoch=0, share=(0, 3))

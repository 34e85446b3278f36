"""Batches of standardised images, augmented whole batches at a time on the device that they are for.

Images stay bytes until the last step: a batch is picked, padded, cropped and mirrored as uint8, and becomes float32
only when it is standardised. What is more than that, such as reading them from files, is up to the kind of `Images`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .dataset import DataError, Dataset, Images

Batches = Iterator[tuple[Tensor, Tensor]]
# Which part of each batch a process takes, and of how many: (rank, processes).
Share = tuple[int, int]
WHOLE: Share = (0, 1)
# Images and pixels of a batch in evaluation, at most.
EVALUATION_BATCH, EVALUATION_PIXELS = 500, 500 * 64 * 64


def training_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    epoch: int,
    first: int = 0,
    share: Share = WHOLE,
) -> Batches:
    """One epoch of the training set from batch `first` on, shuffled, the last incomplete batch dropped.

    Yields (x, y): x float32 [batch_size, C, H, W], standardised, channels_last; y int64 [batch_size]; both on the
    device of the images. Where `dataset.mix` makes three views of an image, x has all images of one view after those of
    another. Each image is padded by `dataset.crop_padding` pixels of black (black as in
    the image, before standardising), cropped back at a random place, and, if `dataset.flip`, mirrored half the time.

    All chance is drawn on the host from (seed, epoch) alone and moved to the device once, so every device sees the
    same epoch, and a resumed run needs no stored random state.

    share: (rank, processes) for the part of each batch that this of several processes takes, batch_size / processes
    images; all parts together are the batch of a single process.

    Raises DataError, at the call, for a batch size below 1, above the number of training images, or not to be divided.
    """
    _check_batch_size(batch_size)
    if batch_size % share[1]:
        raise DataError(f"batch size {batch_size} cannot be divided evenly among {share[1]} processes")
    if batch_size > len(dataset.train):
        raise DataError(
            f"batch size {batch_size} exceeds the {len(dataset.train)} training images of {dataset.name}; "
            f"use {len(dataset.train)} or less"
        )
    return _training_batches(dataset, batch_size, seed, epoch, first, share)


def evaluation_batches(
    images: Images, dataset: Dataset, batch_size: int | None = None, share: Share = WHOLE
) -> Batches:
    """Every image once, in order, standardised as `dataset`'s are and not augmented; the last batch may be smaller.

    batch_size: by default as `evaluation_batch` has it.
    share: (rank, processes): this process takes batches rank, rank + processes, ... (none, if there are fewer).

    Yields (x, y) as `training_batches` does. Raises DataError, at the call, for a batch size below 1.
    """
    batch_size = evaluation_batch(dataset) if batch_size is None else batch_size
    _check_batch_size(batch_size)
    standardise = _standardiser(dataset, images.labels.device)
    rank, processes = share
    starts = range(rank * batch_size, len(images), processes * batch_size)
    parts = [slice(start, start + batch_size) for start in starts]
    return ((standardise(batch), labels) for batch, labels in images.in_order(parts))


class ClassBatches:
    """Some training images of each class, standardised and not augmented: the same batches each time it is iterated.

    They come in two halves, each with half of the images of each class, and each half in batches of at most
    `batch_size`. Yields (x, y) as `training_batches` does.

    per_class: how many of each class are drawn, or as many as there are; with 0 it is one image in all, for its shape.
    All chance is drawn on the host from the seed alone.
    """

    def __init__(self, dataset: Dataset, per_class: int, batch_size: int, seed: int) -> None:
        _check_batch_size(batch_size)
        order = _draws(len(dataset.train), 1, seed, "of each class")[0]
        labels = dataset.train.labels.cpu()[order]
        of_class = [order[labels == label][:per_class] for label in range(dataset.num_classes)]
        halves = [torch.cat([drawn[half::2] for drawn in of_class]) for half in (0, 1)] if per_class else [order[:1]]
        ends = [0, *torch.tensor([len(half) for half in halves]).cumsum(0).tolist()]
        self._images, self._dataset = dataset.train.take(torch.cat(halves)), dataset
        self._parts = [
            slice(start, min(start + batch_size, end))
            for begin, end in pairwise(ends)
            for start in range(begin, end, batch_size)
        ]

    def __iter__(self) -> Batches:
        standardise = _standardiser(self._dataset, self._images.labels.device)
        return ((standardise(batch), labels) for batch, labels in self._images.in_order(self._parts))


def evaluation_batch(dataset: Dataset) -> int:
    """How many images are evaluated at a time, unless somebody says otherwise."""
    return min(EVALUATION_BATCH, max(1, EVALUATION_PIXELS // dataset.image_size**2))


def _training_batches(dataset: Dataset, batch_size: int, seed: int, epoch: int, first: int, share: Share) -> Batches:
    standardise = _standardiser(dataset, dataset.device)
    rank, processes = share
    batches = len(dataset.train) // batch_size
    draws = _draws(len(dataset.train), 2 * dataset.crop_padding + 1, seed, epoch)
    draws = draws[:, first * batch_size : batches * batch_size]
    draws = draws.view(4, batches - first, processes, batch_size // processes)[:, :, rank]
    drawn = dataset.train.drawn(draws[0], f"{seed} {epoch}")
    of_batches = zip(drawn, draws[1:].to(dataset.device).unbind(1), strict=True)
    for number, ((pixels, labels), (top, left, mirrored)) in enumerate(of_batches, first):
        batch = pixels
        if dataset.crop_padding:
            batch = _crop(batch, dataset.crop_padding, top, left)
        if dataset.flip:
            batch = torch.where(mirrored.bool()[:, None, None, None], batch.flip(2), batch)
        if dataset.mix is not None:
            batch = dataset.mix(batch, f"{seed} {epoch} {number}", rank, processes)
        yield standardise(batch), labels


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch size {batch_size} must be 1 or more")


def _draws(count: int, offsets: int, seed: int, epoch: int | str) -> Tensor:
    """One epoch's chance, int64 [4, count]: image, crop's top and left in [0, offsets), mirrored or not in {0, 1}."""
    # Hashed, so that seed 1 of epoch 2 and seed 2 of epoch 1 have nothing in common.
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    order = torch.randperm(count, generator=generator)
    corners = torch.randint(offsets, (2, count), generator=generator)
    mirrored = torch.randint(2, (count,), generator=generator)
    return torch.cat([order[None], corners, mirrored[None]])


def _crop(batch: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad uint8 [B, H, W, C] with black and cut [H, W] out again at (top, left), int64 [B], of each image."""
    height, width = batch.shape[1:3]
    padded = F.pad(batch, (0, 0, padding, padding, padding, padding))
    # All the crops an image has, as a view: only the one chosen is ever copied.
    crops = padded.unfold(1, height, 1).unfold(2, width, 1)
    each = torch.arange(len(batch), device=batch.device)
    return crops[each, top, left].permute(0, 2, 3, 1)


def _standardiser(dataset: Dataset, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The function from uint8 [B, H, W, C] to float32 [B, C, H, W], channels_last: (pixel / 255 - mean) / std."""
    # One value a column and channel: a pass along whole rows is far faster than one along three channels.
    shift = 255 * torch.tensor(dataset.mean, dtype=torch.float64).repeat(dataset.image_size)
    scale = 1 / (255 * torch.tensor(dataset.std, dtype=torch.float64)).repeat(dataset.image_size)
    shift, scale = shift.float().to(device), scale.float().to(device)

    def standardise(batch: Tensor) -> Tensor:
        rows = batch.flatten(2)
        return (rows - shift).mul_(scale).view(batch.shape).permute(0, 3, 1, 2)

    return standardise

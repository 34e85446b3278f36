"""Images that stay files: decoded, augmented and standardised batch by batch, by worker processes."""

from __future__ import annotations

import ctypes
import hashlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ..devices import host_reads_free
from .dataset import DataError, Dataset, held_out_count, stratified_ranks

# Batches that each worker has ready, at most.
PREFETCHED = 2

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class ImageFiles:
    """Files of images, and the class of each: int64 [N]."""

    files: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class StreamedDataset:
    """A training and a test set of files, and how they are read; to be used as `Dataset` is.

    augmented, plain: from an image to uint8 [3, image_size, image_size], for training by the chances of torch's global
    generator. mean, std: per channel, for pixels scaled to [0, 1]. workers: processes that decode, at least 1.
    """

    name: str
    train: ImageFiles
    test: ImageFiles
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    augmented: Transform
    plain: Transform
    workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    in_channels = 3

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to(self, device: torch.device | str) -> StreamedDataset:
        """The same images, whose batches come on `device`."""
        return replace(self, device=torch.device(device))

    def decoded_by(self, workers: int) -> StreamedDataset:
        """The same images, decoded by so many processes."""
        return replace(self, workers=workers)

    def hold_out(self, share: float) -> tuple[StreamedDataset, ImageFiles]:
        """As `Dataset.hold_out`."""
        left, taken = stratified_ranks(self.train.labels, self.held_out_count(share))
        return replace(self, train=_chosen(self.train, left)), _chosen(self.train, taken)

    def held_out_count(self, share: float) -> int:
        """As `Dataset.held_out_count`."""
        return held_out_count(len(self.train), share)


AnyDataset: TypeAlias = Dataset | StreamedDataset


def streamed_training_batches(
    dataset: StreamedDataset, batch_size: int, seed: int, epoch: int, augment: bool, first: int, share: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """As `training_batches`. The chances of an image are those of (seed, epoch, its place among the files) alone, so
    that any number of workers gives the same."""
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(_seed(seed, epoch)))
    batches = [
        order[start : start + batch_size].chunk(share[1])[share[0]].tolist()
        for start in range(first * batch_size, len(order) - batch_size + 1, batch_size)
    ]
    chances = (seed, epoch) if augment else None
    return _batches(dataset, dataset.train, batches, dataset.augmented if augment else dataset.plain, chances)


def streamed_evaluation_batches(
    images: ImageFiles, dataset: AnyDataset, batch_size: int, share: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """As `evaluation_batches`."""
    assert isinstance(dataset, StreamedDataset), "files need to be told how they are read"
    rank, processes = share
    starts = range(rank * batch_size, len(images), processes * batch_size)
    batches = [list(range(start, min(start + batch_size, len(images)))) for start in starts]
    return _batches(dataset, images, batches, dataset.plain, None)


def _batches(
    dataset: StreamedDataset,
    images: ImageFiles,
    batches: Sequence[list[int]],
    transform: Transform,
    chances: tuple[int, int] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    mean, std = (255 * torch.tensor(values)[:, None, None].to(dataset.device) for values in (dataset.mean, dataset.std))
    loader: DataLoader[Any] = DataLoader(
        _Decoder(images.files, transform, chances),  # type: ignore[arg-type]
        batch_size=None,
        sampler=batches,
        num_workers=min(dataset.workers, len(batches)),
        prefetch_factor=PREFETCHED if batches else None,
        worker_init_fn=_begin_worker,
        pin_memory=not host_reads_free(mean),
    )
    for places, pixels in zip(batches, loader, strict=True):
        if isinstance(pixels, str):
            raise DataError(pixels)
        batch = pixels.to(dataset.device, non_blocking=True).float()
        x = batch.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        yield x, images.labels[places].to(dataset.device, non_blocking=True)


@dataclass(frozen=True)
class _Decoder:
    """Batches by the places of their images: uint8 [B, 3, S, S], or what is wrong with one of the files."""

    files: tuple[str, ...]
    transform: Transform
    chances: tuple[int, int] | None

    def __getitem__(self, places: list[int]) -> Tensor | str:
        pixels = []
        for place in places:
            try:
                with Image.open(self.files[place]) as image:
                    decoded = image.convert("RGB")
            except Exception as fault:  # Pillow's decoders raise nearly anything on damaged files
                return f"cannot read image {self.files[place]} ({fault}): replace or remove it"
            with torch.random.fork_rng(devices=[], enabled=self.chances is not None):
                if self.chances is not None:
                    torch.default_generator.manual_seed(_seed(*self.chances, place))
                pixels.append(self.transform(decoded))
        return torch.stack(pixels)


def _begin_worker(worker: int) -> None:
    """End with the process that asked for the batches, and not before: it is for that one to heed signals."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere a worker takes some seconds to see that nobody is left
        end_with_parent = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(end_with_parent, signal.SIGKILL)


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:8], "little")


def _chosen(images: ImageFiles, places: Tensor) -> ImageFiles:
    return ImageFiles(tuple(images.files[place] for place in places.tolist()), images.labels[places])

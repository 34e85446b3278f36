"""Images that stay files, decoded and cropped batch by batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..devices import host_reads_free
from ..dtypes import float32_by_default
from .dataset import DataError, Images, Pixels
from .decoding import read_image
from .digest import Part, digest_files
from .folder import Samples, unreadable
from .workers import computed

# Images that a worker hands over at a time. Not whole batches: with several ready for each of many workers, those would
# fill the shared memory, of which a container often has 64 MB.
PIECE = 32
# Batches that lie ready.
READY = 2
# The shorter side of an image to test on beside the side of its crop, both in pixels.
SHORTER_SIDE = 256 / 224


@dataclass(frozen=True)
class ImageFiles(Images):
    """Images in files and the class of each; in batches [image_size, image_size], RGB.

    To train on, a random part of 8 to 100 % of the image, of a shape from 3:4 to 4:3, is scaled to that size; to
    evaluate on, and without `random_crop` to train on too, the shorter side is scaled to 256/224 of it and the middle
    cut out: torchvision's transforms, with Pillow's bilinear filter.

    files: bytes [N], paths below `root`. Kept so because a worker's mere look at a Python object copies its page.
    workers: processes that decode, from the first batch on to the last; 0 for this one. They change no bit.

    A batch with a file that cannot be read raises DataError in its turn.
    """

    root: Path
    files: np.ndarray
    labels: Tensor
    image_size: int
    workers: int = 0
    random_crop: bool = True
    origin: Part | None = None

    @classmethod
    def of(cls, samples: Samples, root: Path, image_size: int) -> ImageFiles:
        """The images of (file below `root`, class index) pairs. Each file is read once, for its digest."""
        files = np.array([os.fsencode(file) for file, _ in samples])
        images = cls(root, files, torch.tensor([label for _, label in samples]), image_size)
        return replace(images, origin=images.digest)

    @cached_property
    def digest(self) -> Part:
        if self.origin:
            return self.origin
        names = [os.fsdecode(file) for file in self.files]
        try:
            return Part.of_files(names, *digest_files(self.root, names))
        except OSError as error:
            raise unreadable(error) from error

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.image_size, self.image_size

    def to(self, device: torch.device | str) -> ImageFiles:
        return replace(self, labels=self.labels.to(device))

    def decoded_by(self, workers: int) -> ImageFiles:
        return replace(self, workers=workers)

    def cropped(self, at_random: bool) -> ImageFiles:
        return replace(self, random_crop=at_random)

    def take(self, index: Tensor) -> ImageFiles:
        labels = self.labels[index.to(self.labels.device)]
        return replace(self, files=self.files[index.numpy()], labels=labels, origin=None)

    def drawn(self, order: Tensor, chance: str) -> Pixels:
        labels = self.labels[order.to(self.labels.device)]
        return zip(self._decoded(order.unbind(), chance if self.random_crop else ""), labels, strict=True)

    def in_order(self, parts: list[slice]) -> Pixels:
        places = torch.arange(len(self))
        return zip(self._decoded([places[part] for part in parts]), [self.labels[part] for part in parts], strict=True)

    def _decoded(self, batches: Sequence[Tensor], chance: str = "") -> Iterator[Tensor]:
        """uint8 [B, S, S, 3] of each batch of places, int64 [B]."""
        device = self.labels.device
        pieces = [piece for batch in batches for piece in batch.split(PIECE)]
        decoder = _Decoder(self.root, self.files, pieces, self.image_size, chance)
        ready = READY * sum(len(batch.split(PIECE)) for batch in batches[:1])
        decoded = computed(decoder, self.workers, ready, pinned=not host_reads_free(self.labels))
        for batch in batches:
            arrived = []
            for _ in batch.split(PIECE):
                piece = next(decoded)
                if isinstance(piece, DataError):
                    raise piece
                arrived.append(piece.to(device, non_blocking=True))
            yield torch.cat(arrived)


class _Decoder:
    """The pieces of an epoch, each decoded when it is asked for."""

    def __init__(self, root: Path, files: np.ndarray, pieces: list[Tensor], image_size: int, chance: str) -> None:
        self._root, self._files, self._pieces, self._image_size = root, files, pieces, image_size
        self._chance = chance
        self._crop = _crop(image_size, at_random=bool(chance))

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, number: int) -> Tensor | DataError:
        """uint8 [B, S, S, 3]; an error is handed over and not raised, as a worker would put its traceback before it."""
        places = self._pieces[number].tolist()
        pixels = torch.empty(len(places), self._image_size, self._image_size, 3, dtype=torch.uint8)
        try:
            with torch.random.fork_rng(devices=[], enabled=bool(self._chance)), float32_by_default():
                for place, row in zip(places, pixels, strict=True):
                    if self._chance:  # of this image alone, whichever batch and worker it comes to
                        digest = hashlib.sha256(f"{self._chance} {place}".encode()).digest()
                        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little"))
                    image = read_image(os.path.join(self._root, os.fsdecode(self._files[place])))
                    row.copy_(self._crop(image).permute(1, 2, 0))
        except DataError as error:
            return error
        return pixels


def _crop(image_size: int, at_random: bool) -> Callable[[Any], Tensor]:
    """From a Pillow image to uint8 [3, S, S]; chance comes from torch's global generator."""
    from torchvision.transforms import v2  # here, because importing it takes a second that no other data set needs

    if at_random:
        return v2.Compose([v2.RandomResizedCrop(image_size), v2.PILToTensor()])
    return v2.Compose([v2.Resize(round(SHORTER_SIDE * image_size)), v2.CenterCrop(image_size), v2.PILToTensor()])

"""Image files through a compiled ticket: what `ticket run` does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.dataset import DataError, resize
from ..data.decoding import image_endings, read_image
from .compiled import CompiledTicket, compiled
from .images import Warn
from .ticket import Ticket

AT_ONCE = 256  # images that are decoded before they are classified


def classify(ticket: Ticket, files: Sequence[Path], warn: Warn) -> Iterator[tuple[Path, Tensor]]:
    """Each image's file and the probability of each class, float32 [classes], in order.

    Images are made RGB, or grey for a network of one channel, scaled and cropped to the network's size as those of a
    folder are (`data.resize`), and standardised by the ticket's mean and std; where it has none, by 0 and 1, with a
    warning. Raises ValueError for a network that cannot be run so or takes other images, DataError for no image.
    """
    channels, height, width = ticket.images
    if channels not in (1, 3) or height != width:
        raise ValueError(f"the network takes {channels} channels of {height}x{width}: images are square, grey or RGB")
    run = compiled(ticket)
    mean, std = ticket.image_spec.mean, ticket.image_spec.std
    if mean is None or std is None:
        warn("the ticket has no valid mean and std: pixels in [0, 1] are given to the network as they are")
        mean, std = (0.0,) * channels, (1.0,) * channels
    for start in range(0, len(files), AT_ONCE):
        some = files[start : start + AT_ONCE]
        yield from zip(some, _probabilities(run, some, mean, std), strict=True)


def _probabilities(
    run: CompiledTicket, files: Sequence[Path], mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    channels, size, _ = run.shape
    images = torch.cat([resize(_planes(file, channels), size) for file in files]).to(torch.float32) / 255
    shift, scale = (torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1) for values in (mean, std))
    return run((images - shift) / scale).softmax(1)


def _planes(file: Path, channels: int) -> Tensor:
    """uint8 [1, C, H, W]."""
    image = read_image(os.fspath(file))
    pixels = torch.frombuffer(bytearray(image.convert("L" if channels == 1 else "RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, channels).permute(0, 3, 1, 2)


def image_files(places: Sequence[Path]) -> list[Path]:
    """The files among these, and all images in the folders, by name; DataError for a folder without one."""
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            found.append(place)
            continue
        inside = sorted(file for file in place.rglob("*") if file.suffix.lower() in image_endings() and file.is_file())
        if not inside:
            raise DataError(f"there is no image in the folder {str(place)!r}")
        found += inside
    return found

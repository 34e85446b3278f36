"""Tickets that run: a function of images that computes with what a ticket keeps, without torch."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import kernels
from ..devices import host_reads_free
from .file import read_ticket
from .lowering import program_of
from .program import Shape
from .ticket import Ticket

MOST_THREADS, MOST_PIXELS = 256, 2**16

Images = TypeVar("Images", Tensor, np.ndarray)


class CompiledTicket:
    """What `compile_ticket` gives: call it with images.

    shape: (C, H, W) of an image. classes: how many numbers it gives for each. threads: how many it uses; None for as
    many as torch does. program: what it runs, which `export_cpp` writes.
    """

    def __init__(self, program: bytes, shape: Shape, classes: int, threads: int | None = None) -> None:
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST_THREADS):
            raise ValueError(f"threads must lie in 1 to {MOST_THREADS}, not {threads}")
        self.program, self.shape, self.classes, self.threads = program, shape, classes, threads
        self._library: Any = kernels.compiled()
        if self._library is None:
            raise ValueError(
                "a ticket runs by the compiled loops, which are missing: install again with a C++ compiler"
            )
        self._engine = self._library.mpt_ticket_load(program, len(program))
        if not self._engine:
            raise MemoryError("there is no memory for the ticket's program")

    def __call__(self, images: Images) -> Images:
        """Logits [N, classes], float32, of images [N, C, H, W]; in, and out, tensors or NumPy's arrays.

        images: on the host, as the network takes them: (x - mean) / std of values in [0, 1]. Raises ValueError for
        another shape, and TypeError for what are no floating-point images.
        """
        given: Any = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        if not isinstance(given, Tensor) or not given.is_floating_point() or not host_reads_free(given):
            raise TypeError("images must be a tensor or an array of floating-point numbers in the host's memory")
        if given.dim() != 4 or tuple(given.shape[1:]) != self.shape:
            raise ValueError(f"images must be of shape [N, {', '.join(map(str, self.shape))}], not {[*given.shape]}")
        given = given.detach().to(torch.float32).contiguous()
        logits = torch.empty(len(given), self.classes, dtype=torch.float32)
        threads = self.threads or min(torch.get_num_threads(), MOST_THREADS)
        if self._library.mpt_ticket_run(self._engine, given.data_ptr(), logits.data_ptr(), len(given), threads):
            raise MemoryError(f"there is no memory for {len(given)} images at a time")
        return logits.numpy() if isinstance(images, np.ndarray) else logits

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._library.mpt_ticket_free(self._engine)
            self._engine = None

    def __reduce__(self) -> Any:
        return CompiledTicket, (self.program, self.shape, self.classes, self.threads)


def compile_ticket(
    path: Path | str, into: nn.Module | None = None, images: Shape | None = None, threads: int | None = None
) -> CompiledTicket:
    """A function from images to logits that computes with the weights that a ticket keeps, on the CPU.

    into: a network of the user's own that the ticket is for; it stays as it is. images: (C, H, W) of those that it
    takes. threads: how many are used; None for as many as torch uses.

    Logits are those of `load_ticket`'s network but for rounding, to about 1e-6 of their spread; with binary activations
    equal wherever sums are whole numbers. An image's are the same bits in any batch.

    Raises ValueError in one line for what is no ticket, as `load_ticket` does, and for a network that has something
    which cannot be run so, with its name.
    """
    return compiled(read_ticket(path, into), into, images, threads)


def compiled(
    ticket: Ticket, into: nn.Module | None = None, images: Shape | None = None, threads: int | None = None
) -> CompiledTicket:
    """As `compile_ticket`, of one that has been read."""
    if into is None or images is None:
        images = ticket.images if into is None else images
    if images is None:
        raise ValueError("say images=(channels, height, width) of those that the network takes")
    sizes = tuple(images) if isinstance(images, tuple | list) else ()
    if len(sizes) != 3 or not all(type(size) is int and 1 <= size <= MOST_PIXELS for size in sizes):
        raise ValueError(f"images must be three sizes from 1 to {MOST_PIXELS:,}, not {reprlib.repr(images)}")
    images = sizes[0], sizes[1], sizes[2]
    program, classes = program_of(ticket, into, images)
    return CompiledTicket(program, images, classes, threads)

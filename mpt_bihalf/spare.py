"""Memory for what has the size of a layer's weight; in training the same again and again."""

from __future__ import annotations

import mmap
import sys
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor

from .devices import host_reads_free

SMALLEST = 2**16  # elements worth it
PRIVATE: Any = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Memory:
    """Memory for what has the size of a layer's weight: torch's, new each time."""

    def like(self, tensor: Tensor) -> Tensor:
        """An uninitialised contiguous tensor of this shape, dtype and device."""
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class Spare(Memory):
    """A block for one tensor at a time: in turn the weight in use, then the gradient of what is trained.

    It is taken as soon as no tensor holds it any more. Outside the C library's heap it leaves no holes between the
    activations there, which would cost more than the block. A copy or a pickle of it begins with none.
    """

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._idle = 0  # references to the block while no tensor is in it
        self._lock = Lock()

    def like(self, tensor: Tensor) -> Tensor:
        """An uninitialised contiguous tensor likewise; in the block if that is free."""
        flat = None
        # Another thread, or what this one was interrupted in, may be at it: never wait.
        if host_reads_free(tensor) and tensor.numel() >= SMALLEST and self._lock.acquire(blocking=False):
            try:
                flat = self._take(tensor.numel(), tensor.dtype)
            finally:
                self._lock.release()
        if flat is None:
            return super().like(tensor)
        # Not a view of `flat`: autograd tells the two apart.
        out: Any = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return cast(Tensor, out.set_(flat.untyped_storage(), 0, tensor.shape))

    def _take(self, count: int, dtype: torch.dtype) -> Tensor | None:
        """The block as a tensor, whose storage keeps a reference to it; None if another does."""
        size = count * dtype.itemsize
        if self._block is None or len(self._block) != size:
            self._block = mmap.mmap(-1, size, **PRIVATE)
            self._idle = sys.getrefcount(self._block)
        elif sys.getrefcount(self._block) > self._idle:
            return None
        return torch.frombuffer(self._block, dtype=dtype, count=count)

    def __reduce__(self) -> tuple[type[Spare], tuple[()]]:
        return Spare, ()

"""Whether a tensor still holds what it held."""

from __future__ import annotations

from torch import Tensor

from . import kernels
from .devices import host_reads_free


def contents(tensor: Tensor) -> tuple[object, ...] | None:
    """What is another once this tensor holds other values, or lies in memory otherwise; None where that is not known.

    In the host's memory it comes of the values themselves, whoever wrote them. Elsewhere, where looking at them would
    wait for the device, it is what torch notes of writes in place: not of those through `.data`, by collectives, or by
    what is no operation of torch.
    """
    if not kernels.plain(tensor):
        return None
    layout = tensor.shape, tensor.stride()
    if host_reads_free(tensor):
        return kernels.fingerprint(tensor), *layout
    return None if tensor.is_inference() else (tensor._version, 0 if tensor.is_meta else tensor.data_ptr(), *layout)

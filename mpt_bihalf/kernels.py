"""The compiled loops of `kernels.cpp`, where setup.py found a compiler: one pass over the data each.

Each caller has the same in torch, which gives the same bits, for other devices, other dtypes and machines without a
compiler. `MPT_BIHALF_KERNELS=off` in the environment does without them.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .devices import host_reads_free

# Built once for each, as a machine may be moved: torch says which this one can run.
FLAVOURS = {"AVX512": ("avx512", "avx2", "any"), "AVX2": ("avx2", "any")}


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("MPT_BIHALF_KERNELS") == "off":
        return None
    for flavour in FLAVOURS.get(torch.backends.cpu.get_cpu_capability(), ("any",)):
        for file in Path(__file__).parent.glob(f"_kernels_{flavour}.*"):
            try:
                library = ctypes.CDLL(str(file))
            except OSError:  # built for another machine
                continue
            pointer, count = ctypes.c_void_p, ctypes.c_int64
            library.mpt_largest.argtypes = [pointer, ctypes.c_int, pointer, count, count, *[pointer] * 4]
            library.mpt_count.argtypes = [pointer, count, count, pointer]
            library.mpt_masked_magnitude.argtypes = [pointer, pointer, ctypes.c_double, count]
            library.mpt_masked_magnitude.restype = count
            library.mpt_signed.argtypes = [pointer, pointer, ctypes.c_float, count, pointer]
            library.mpt_score_gradient.argtypes = [pointer, pointer, ctypes.c_float, pointer, pointer, count, pointer]
            return library
    return None


def suit(*tensors: Tensor | None) -> bool:
    """Whether the kernels are there and take these: float32 or bool, contiguous, in the host's memory."""
    given = [tensor for tensor in tensors if tensor is not None]
    return _library() is not None and all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and host_reads_free(tensor)
        and tensor.dtype in (torch.float32, torch.bool)
        and tensor.is_contiguous()
        for tensor in given
    )


def largest(values: Tensor, counts: Tensor, hints: Tensor, absolute: bool, among: Tensor | None) -> Tensor:
    """See `selection.largest`. counts: int64 [R]; hints: float32 [R, 2], where to look, changed in place."""
    rows, size = values.shape
    out = torch.empty((rows, size), dtype=torch.bool)
    totals = None if among is None else count(among)
    _call("largest", values, absolute, among, rows, size, counts.contiguous(), totals, hints, out)
    return out


def count(mask: Tensor) -> Tensor:
    """How many are True in each row: int64 [R] of bool [R, D]."""
    totals = torch.empty(mask.shape[0], dtype=torch.int64)
    _call("count", mask, *mask.shape, totals)
    return totals


def masked_magnitude(weight: Tensor, mask: Tensor, units: float) -> int:
    """The sum over the mask of floor(abs(weight) * units)."""
    return _call("masked_magnitude", weight, mask, units, weight.numel())


def signed(positive: Tensor, mask: Tensor | None, alpha: Tensor) -> Tensor:
    """+alpha or -alpha by `positive`, 0 outside `mask`: float32 in the shape of `positive`. alpha: one element."""
    out = torch.empty(positive.shape)
    _call("signed", positive, mask, float(alpha), positive.numel(), out)
    return out


def score_gradient(g: Tensor, magnitude: Tensor, positive: Tensor, scores: Tensor) -> Tensor:
    """g * magnitude * b * sign(S), where magnitude is abs(W), or alpha if it has one element."""
    out = torch.empty_like(g)
    weight, alpha = (magnitude, 0.0) if magnitude.numel() == g.numel() > 1 else (None, float(magnitude))
    _call("score_gradient", g, weight, alpha, positive, scores, g.numel(), out)
    return out


def _call(name: str, *arguments: Tensor | float | None) -> int:
    given = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    return getattr(_library(), f"mpt_{name}")(*given)

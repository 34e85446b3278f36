"""The loops of a training step for float32 in the host's memory, near to one pass over the data each.

They are those of `kernels.cpp`, compiled where setup.py found a compiler; without it NumPy and torch do the same in
more passes, with the same bits. `MPT_BIHALF_KERNELS=off` in the environment does without the compiled ones. Callers
have the general form in torch, for other dtypes and devices.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .devices import host_reads_free

# One is built for each, as an installation may be moved: torch says what this machine can run.
FLAVOURS = {"AVX512": ("avx512", "avx2", "any"), "AVX2": ("avx2", "any")}

SIGN_BIT = torch.iinfo(torch.int32).min


@cache
def compiled() -> ctypes.CDLL | None:
    """The library of compiled loops; None where there is none or none is wanted."""
    if os.environ.get("MPT_BIHALF_KERNELS") == "off":
        return None
    for flavour in FLAVOURS.get(torch.backends.cpu.get_cpu_capability(), ("any",)):
        for file in Path(__file__).parent.glob(f"_kernels_{flavour}.*"):
            try:
                return _declared(ctypes.CDLL(str(file)))
            except (OSError, AttributeError):  # built for another machine, or from an older source
                continue
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.mpt_largest.argtypes = [pointer, ctypes.c_int, pointer, count, count, *[pointer] * 4]
    library.mpt_count.argtypes = [pointer, count, count, pointer]
    library.mpt_masked_magnitude.argtypes = [pointer, pointer, ctypes.c_double, count]
    library.mpt_masked_magnitude.restype = count
    library.mpt_signed.argtypes = [pointer, pointer, ctypes.c_float, count, pointer]
    library.mpt_score_gradient.argtypes = [pointer, pointer, ctypes.c_float, pointer, pointer, count, pointer]
    return library


def suit(*tensors: Tensor | None) -> bool:
    """Whether these are for the functions here: float32 or bool, contiguous, plain tensors in the host's memory."""
    return all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and host_reads_free(tensor)
        and tensor.dtype in (torch.float32, torch.bool)
        and tensor.is_contiguous()
        for tensor in tensors
        if tensor is not None
    )


def largest(values: Tensor, counts: Tensor, hints: Tensor, absolute: bool, among: Tensor | None) -> Tensor:
    """See `selection.largest`. counts: int64 [R]; hints: float32 [R, 2], where to look, changed in place."""
    rows, size = values.shape
    totals = None if among is None else count(among)
    if compiled():
        out = torch.empty((rows, size), dtype=torch.bool, device=values.device)
        _call("largest", values, absolute, among, rows, size, counts.contiguous(), totals, hints, out)
        return out
    ranked = (values.detach().abs() if absolute else values.detach()).numpy()
    all_of_row = np.full(rows, size) if totals is None else totals.numpy()
    members = None if among is None else among.numpy()
    wanted, looks = counts.numpy(), hints.numpy()
    cuts, places = _find_cuts(ranked, wanted, all_of_row, members, looks)
    chosen = ranked >= cuts[:, None]
    if members is not None or np.count_nonzero(chosen) != wanted.sum():
        ties = np.flatnonzero(ranked == cuts[:, None])
        chosen.reshape(-1)[ties[ties % size < places[ties // size]]] = False
    return torch.from_numpy(chosen)


def count(mask: Tensor) -> Tensor:
    """How many are True in each row: int64 [R] of bool [R, D]."""
    if not compiled():
        return torch.tensor([np.count_nonzero(row) for row in mask.numpy()], dtype=torch.int64, device=mask.device)
    totals = torch.empty(mask.shape[0], dtype=torch.int64, device=mask.device)
    _call("count", mask, *mask.shape, totals)
    return totals


def masked_magnitude(weight: Tensor, mask: Tensor, units: float) -> int:
    """The sum over the mask of floor(abs(weight) * units), each below 2^30; units: a power of two."""
    if compiled():
        return _call("masked_magnitude", weight, mask, units, weight.numel())
    kept = (weight.detach().view(torch.int32) & _bits(mask)).view(torch.float32)
    return int(kept.abs_().mul_(units).long().sum())


def signed(positive: Tensor, mask: Tensor | None, alpha: Tensor) -> Tensor:
    """+alpha or -alpha by `positive`, 0 outside `mask`: float32 in the shape of `positive`. alpha: one element."""
    if compiled():
        out = torch.empty(positive.shape, dtype=torch.float32, device=positive.device)
        _call("signed", positive, mask, float(alpha), positive.numel(), out)
        return out
    signs = (~positive).view(torch.uint8).int().mul_(SIGN_BIT).bitwise_xor_(alpha.reshape(()).view(torch.int32))
    return (signs if mask is None else signs.bitwise_and_(_bits(mask))).view(torch.float32)


def score_gradient(g: Tensor, magnitude: Tensor, positive: Tensor, scores: Tensor) -> Tensor:
    """g * magnitude * b * sign(S), where magnitude is abs(W), or alpha if it has one element."""
    if compiled():
        out = torch.empty_like(g)
        weight, alpha = (magnitude, 0.0) if magnitude.numel() == g.numel() > 1 else (None, float(magnitude))
        _call("score_gradient", g, weight, alpha, positive, scores, g.numel(), out)
        return out
    product = g * magnitude.abs()
    against = (positive ^ (scores >= 0)).view(torch.uint8).int().mul_(SIGN_BIT)
    return product.view(torch.int32).bitwise_xor_(against).view(torch.float32)


def _call(name: str, *arguments: Tensor | float | None) -> int:
    given = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    return getattr(compiled(), f"mpt_{name}")(*given)


def _bits(mask: Tensor) -> Tensor:
    """All bits of an int32 for True, none for False."""
    return mask.view(torch.uint8).int().neg_()


Array = NDArray[Any]


@np.errstate(invalid="ignore")  # infinite values make hints that are none
def _find_cuts(ranked: Array, counts: Array, totals: Array, among: Array | None, hints: Array) -> tuple[Array, Array]:
    """Value and index of the lowest chosen element of each row; (inf, D) where none is to be.

    Three looks at the most: around the hint, at what a sample says (Floyd and Rivest 1975), at everything.
    """
    rows, size = ranked.shape
    cuts, places = np.full(rows, np.inf, ranked.dtype), np.full(rows, size)
    pending = np.flatnonzero(counts > 0)
    for look in ("hint", "sample", "all"):
        pending_now = pending[~np.isnan(hints[pending, 0])] if look == "hint" else pending
        if not len(pending_now):
            continue
        whole = len(pending_now) == rows
        part = ranked if whole else ranked[pending_now]
        members = among if whole or among is None else among[pending_now]
        wanted = counts[pending_now]
        if look == "hint":
            middle, half = hints[pending_now].T
            low, high = middle - half, middle + half
        elif look == "sample":
            low, high = _sample_brackets(part, members, wanted / totals[pending_now])
        else:
            low, high = np.full(len(part), -np.inf), np.full(len(part), np.inf)
        value, place, found = _cuts_within(part, members, wanted, low, high)
        done = pending_now[found]
        cuts[done], places[done] = value[found], place[found]
        moved = np.abs(cuts[done] - hints[done, 0])
        width = ((high - low) / 2)[found]
        hints[done, 1] = np.where(np.isnan(moved), width / 4, np.maximum(2 * moved, width / 2))
        hints[done, 1] = np.where(np.isfinite(hints[done, 1]), hints[done, 1], np.abs(cuts[done]) / 16)
        hints[done, 0] = cuts[done]
        pending = np.setdiff1d(pending, done)
    return cuts, places


def _cuts_within(
    ranked: Array, among: Array | None, wanted: Array, low: Array, high: Array
) -> tuple[Array, Array, Array]:
    """Value, index, and whether it was found, of each row's `wanted`-th largest member, looked for in [low, high]."""
    rows, size = ranked.shape
    above = ranked > high.astype(ranked.dtype)[:, None]
    inside = ranked >= low.astype(ranked.dtype)[:, None]
    if among is not None:
        above &= among
        inside &= among
    inside ^= above
    candidates = np.flatnonzero(inside)
    row = candidates // size
    numbers = np.bincount(row, minlength=rows)
    rank = wanted - np.array([np.count_nonzero(line) for line in above])
    found = (rank >= 1) & (rank <= numbers)
    values = ranked.reshape(-1)[candidates]
    ascending = np.lexsort((candidates, values, row))
    at = ascending[(numbers.cumsum() - rank)[found]]
    value, place = np.zeros(rows, ranked.dtype), np.zeros(rows, int)
    value[found], place[found] = values[at], candidates[at] % size
    return value, place, found


def _sample_brackets(ranked: Array, among: Array | None, share: Array) -> tuple[Array, Array]:
    """Values that very likely enclose the cut with this share at or above it, from an even sample of each row."""
    rows, size = ranked.shape
    step = max(1, size // max(256, int(size ** (2 / 3))))
    sample = ranked[:, ::step].astype(np.float64)
    if among is not None:
        sample[~among[:, ::step]] = np.nan  # sorted to the end
    sample.sort(axis=1)
    m = (~np.isnan(sample)).sum(1)
    middle, margin = m * (1 - share), 3.5 * np.sqrt(m * share * (1 - share)) + 4
    left, right = np.floor(middle - margin).astype(int), np.ceil(middle + margin).astype(int)
    lines = np.arange(rows)
    low = np.where(left < 0, -np.inf, sample[lines, left.clip(0, sample.shape[1] - 1)])
    high = np.where(right >= m, np.inf, sample[lines, right.clip(0, sample.shape[1] - 1)])
    return low, high

"""The loops of a training step for float32 in the host's memory, near to one pass over the data each.

They are those of `kernels.cpp`, compiled where setup.py found a compiler; without it torch and NumPy do the same in
more passes over blocks that stay in a cache, with the same bits. `MPT_BIHALF_KERNELS=off` in the environment does
without the compiled ones. Callers have the general form in torch, for other dtypes and devices.
"""

from __future__ import annotations

import ctypes
import os
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .devices import host_reads_free
from .spare import Spare

# One is built for each, as an installation may be moved: torch says what this machine can run.
FLAVOURS = {"AVX512": ("avx512", "avx2", "any"), "AVX2": ("avx2", "any")}

SOURCE = Path(__file__).with_name("kernels.cpp")

BLOCK = 2**18  # elements that are looked at together without the compiled loops: they stay in a cache


@cache
def compiled() -> ctypes.CDLL | None:
    """The library of compiled loops; None where there is none or none is wanted."""
    if os.environ.get("MPT_BIHALF_KERNELS") == "off":
        return None
    for flavour in FLAVOURS.get(torch.backends.cpu.get_cpu_capability(), ("any",)):
        for file in Path(__file__).parent.glob(f"_kernels_{flavour}.*"):
            try:
                return _declared(ctypes.CDLL(str(file)))
            except (OSError, AttributeError):  # built for another machine, or from another source
                continue
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.mpt_source.restype = ctypes.c_uint32
    if library.mpt_source() != zlib.crc32(SOURCE.read_bytes()):
        warnings.warn("the compiled loops are not those of this source and are not used: install again", stacklevel=2)
        raise OSError
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.mpt_largest.argtypes = [pointer, ctypes.c_int, pointer, count, count, *[pointer] * 4]
    library.mpt_count.argtypes = [pointer, count, count, pointer]
    library.mpt_masked_magnitude.argtypes = [pointer, pointer, ctypes.c_double, count]
    library.mpt_masked_magnitude.restype = count
    library.mpt_signed.argtypes = [pointer, pointer, pointer, count, count, pointer]
    library.mpt_score_gradient.argtypes = [pointer, pointer, ctypes.c_float, pointer, pointer, count, pointer]
    return library


def suit(*tensors: Tensor | None) -> bool:
    """Whether these are for the functions here: float32 or bool, contiguous, plain tensors in the host's memory."""
    return all(
        plain(tensor)
        and host_reads_free(tensor)
        and tensor.dtype in (torch.float32, torch.bool)
        and tensor.is_contiguous()
        for tensor in tensors
        if tensor is not None
    )


def plain(tensor: Tensor) -> bool:
    """Whether this is a tensor with memory of its own, whose use no graph records; not one of vmap's, say."""
    functorch = torch._C._functorch
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not (tensor.requires_grad and torch.is_grad_enabled())
        and not functorch.is_functorch_wrapped_tensor(tensor)
        and not functorch.is_legacy_batchedtensor(tensor)
    )


def largest(values: Tensor, counts: Tensor, hints: Tensor, absolute: bool, among: Tensor | None) -> Tensor:
    """See `selection.largest`. counts: int64 [R]; hints: float32 [R, 2], where to look, changed in place."""
    rows, size = values.shape
    if compiled():
        totals = None if among is None else count(among)
        out = torch.empty((rows, size), dtype=torch.bool, device=values.device)
        _call("largest", values, absolute, among, rows, size, counts.contiguous(), totals, hints, out)
        return out
    chosen = torch.empty((rows, size), dtype=torch.bool, device=values.device)
    _choose_top(values.detach(), absolute, among, counts.numpy(), hints.numpy(), chosen)
    return chosen


def count(mask: Tensor) -> Tensor:
    """How many are True in each row: int64 [R] of bool [R, D]."""
    if not compiled():
        return torch.from_numpy(_count_rows(mask.numpy()))
    totals = torch.empty(mask.shape[0], dtype=torch.int64, device=mask.device)
    _call("count", mask, *mask.shape, totals)
    return totals


def masked_magnitude(weight: Tensor, mask: Tensor, units: float) -> int:
    """The sum over the mask of floor(abs(weight) * units), each below 2^30; units: a power of two."""
    if compiled():
        return _call("masked_magnitude", weight, mask, units, weight.numel())
    total = 0
    for w, kept in _parts(weight.detach(), mask):
        # Whole numbers, of which a block's sum is exact in float64, whatever its order.
        total += int(w.abs().mul_(units).floor_().mul_(kept).sum(dtype=torch.float64))
    return total


def signed(positive: Tensor, mask: Tensor | None, alpha: Tensor, spare: Spare | None = None) -> Tensor:
    """+alpha or -alpha by `positive`, 0 outside `mask`: alpha's dtype, the shape of `positive`.

    alpha: broadcasts over `positive`. spare: memory for it. Unlike the other functions here this one is for any device
    and dtype.
    """
    rows = alpha.numel()
    of_filters = rows > 1 and alpha.shape == (positive.shape[0], *[1] * (positive.dim() - 1))
    if suit(positive, mask, alpha) and (rows == 1 or of_filters):
        out = (spare or Spare()).like(alpha.expand(positive.shape))
        if compiled():
            _call("signed", positive, mask, alpha, rows, positive.numel() // rows, out)
            return out
        sizes = alpha.reshape(rows, 1)
        for flat, lines, part in _blocks(out.view(rows, -1)):
            torch.mul(_signs(*_at(flat, part.shape, positive, mask)), sizes[lines], out=part)
        return out
    return _signs(positive, mask).to(alpha.dtype).mul_(alpha)


def score_gradient(g: Tensor, magnitude: Tensor, positive: Tensor, scores: Tensor, spare: Spare) -> Tensor:
    """g * magnitude * b * sign(S), where magnitude is abs(W), or alpha if it has one element. spare: memory for it."""
    out = spare.like(g)
    if compiled():
        weight, alpha = (magnitude, 0.0) if magnitude.numel() == g.numel() > 1 else (None, abs(float(magnitude)))
        _call("score_gradient", g, weight, alpha, positive, scores, g.numel(), out)
        return out
    of_one = magnitude.numel() < g.numel()
    for part, of_loss, sign, score, *own in _parts(out, g, positive, scores, *([] if of_one else [magnitude])):
        torch.mul(of_loss, magnitude.abs() if of_one else own[0].abs(), out=part)
        part.mul_(_signs(sign == (score >= 0), None))
    return out


def _call(name: str, *arguments: Tensor | float | None) -> int:
    given = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    return getattr(compiled(), f"mpt_{name}")(*given)


def _signs(positive: Tensor, mask: Tensor | None) -> Tensor:
    """+1 or -1 by `positive`, 0 outside `mask`: int8, in the shape of `positive`."""
    signs = positive.to(torch.int8).mul_(2).sub_(1)
    return signs if mask is None else signs.mul_(mask)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Contiguous tensors of one size, flat, in parts that stay in the processor's cache."""
    return zip(*(tensor.view(-1).split(BLOCK) for tensor in tensors), strict=True)


def _blocks(values: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows [R, D] in parts that stay in the processor's cache: place in the flat tensor, rows, values [rows, ...]."""
    rows, size = values.shape
    at_once = max(1, BLOCK // size) if size else max(1, rows)
    step = min(size, BLOCK) * at_once
    flat = values.view(-1)
    for row in range(0, rows if size else 0, at_once):
        lines = slice(row, min(row + at_once, rows))
        for start in range(row * size, lines.stop * size, step):
            place = slice(start, min(start + step, lines.stop * size))
            yield place, lines, flat[place].view(lines.stop - row, -1)


def _at(flat: slice, shape: torch.Size, *tensors: Tensor | None) -> list[Any]:
    """The elements at a place of the flat tensors, in this shape."""
    return [None if tensor is None else tensor.view(-1)[flat].view(shape) for tensor in tensors]


Array = NDArray[Any]


@np.errstate(invalid="ignore")  # infinite values make hints that are none
def _choose_top(
    values: Tensor, absolute: bool, among: Tensor | None, counts: Array, hints: Array, chosen: Tensor
) -> None:
    """Mark in `chosen` what `selection.largest` says.

    Three looks at the most: around the hint, at what a sample says (Floyd and Rivest 1975), at everything.
    """
    rows, size = values.shape
    pending = np.flatnonzero(counts > 0)
    if len(pending) < rows:
        chosen[torch.from_numpy(counts <= 0)] = False
    for look in ("hint", "sample", "all"):
        rows_now = pending[~np.isnan(hints[pending, 0])] if look == "hint" else pending
        if not len(rows_now):
            continue
        whole, index = len(rows_now) == rows, torch.from_numpy(rows_now)
        part = values if whole else values[index]
        members = among if whole or among is None else among[index]
        marks = chosen if whole else torch.empty(part.shape, dtype=torch.bool, device=part.device)
        wanted = counts[rows_now]
        if look == "hint":
            middle, half = hints[rows_now].T
            low, high = middle - half, middle + half
        elif look == "sample":
            low, high = _sample_brackets(part.numpy(), absolute, None if members is None else members.numpy(), wanted)
        else:
            low, high = np.full(len(part), -np.inf), np.full(len(part), np.inf)
        bounds = low.astype(np.float32), high.astype(np.float32)
        cuts, found, candidates = _choose_within(part, absolute, members, wanted, *bounds, marks)
        if not whole:
            chosen[index] = marks
        done, cuts = rows_now[found], cuts[found]
        if len(done):
            moved, half = np.abs(cuts - hints[done, 0]), ((high - low) / 2)[found]
            usual = np.median(moved) if rows > 1 else 0  # rows of a layer move alike
            narrower = np.where(candidates[found] > size / 256 + 16, half / 2, half)
            half = np.where(np.isnan(moved), half / 4, np.fmax(4 * moved, np.fmax(narrower, 8 * usual)))
            hints[done, 1] = np.where(np.isfinite(half), half, np.abs(cuts) / 16)
            hints[done, 0] = cuts
        if found.all() and len(rows_now) == len(pending):
            break
        pending = np.setdiff1d(pending, done)


def _choose_within(
    values: Tensor, absolute: bool, among: Tensor | None, wanted: Array, low: Array, high: Array, chosen: Tensor
) -> tuple[Array, Array, Array]:
    """Look for each row's `wanted`-th largest member in [low, high], and mark in `chosen` what ranks at or above it.

    Returns its value in each row, whether it was found there, and how many members are there. A row without it is left
    with marks at what lies above `high`.
    """
    rows, size = values.shape
    lowest, highest = (torch.from_numpy(bound).unsqueeze(1) for bound in (low, high))
    above, pieces, places = np.zeros(rows, int), [], []
    magnitudes = torch.empty(BLOCK, dtype=values.dtype, device=values.device)
    for flat, lines, part in _blocks(values):
        ranked = torch.abs(part, out=magnitudes[: part.numel()].view(part.shape)) if absolute else part
        higher, counted = _at(flat, part.shape, chosen, among)
        torch.gt(ranked, highest[lines], out=higher)
        inside = torch.ge(ranked, lowest[lines]).bitwise_xor_(higher)
        above[lines] += _count_rows((higher if among is None else higher & counted).numpy())
        at = np.flatnonzero(inside.numpy())
        pieces.append(ranked.numpy().reshape(-1)[at])
        places.append(at + flat.start)
    keys, at = np.concatenate(pieces), np.concatenate(places)
    line, column = np.divmod(at, size)
    counts_here = slice(None) if among is None else among.numpy().reshape(-1)[at]
    numbers = np.bincount(line[counts_here], minlength=rows)
    rank = wanted - above
    found = (rank >= 1) & (rank <= numbers)
    cuts, first = np.full(rows, np.inf, values.numpy().dtype), np.zeros(rows, int)
    if found.any():
        # The members as a table, a line for each row, filled up at the end.
        real = np.arange(numbers.max()) < numbers[:, None]
        table, index = np.full(real.shape, -np.inf, cuts.dtype), np.zeros(real.shape, int)
        table[real], index[real] = keys[counts_here], column[counts_here]
        table, index, real, rank = table[found], index[found], real[found], rank[found]
        in_order = np.sort(table, axis=1) if len(table) > 1 else np.partition(table, -rank[0], axis=1)
        cut = np.take_along_axis(in_order, -rank[:, None], axis=1)
        # Of equal members the last are chosen, as many as the rank still asks for.
        ties = (table == cut) & real
        surplus = _count_rows(ties) - (rank - _count_rows(table > cut))
        lowest_chosen = (ties.cumsum(axis=1, dtype=np.int32) > surplus[:, None]).argmax(axis=1)
        cuts[found], first[found] = cut[:, 0], index[np.arange(len(index)), lowest_chosen]
    at_least = (keys > cuts[line]) | ((keys == cuts[line]) & (column >= first[line]))
    chosen.numpy().reshape(-1)[at[at_least]] = True
    return cuts, found, numbers


def _count_rows(mask: Array) -> Array:
    """How many are True in each row, by the faster way for rows of this length."""
    if mask.shape[1] > 1024:
        return np.array([np.count_nonzero(row) for row in mask])
    return np.add.reduce(mask.view(np.int8), axis=1, dtype=np.int32).astype(int)


def _sample_brackets(values: Array, absolute: bool, among: Array | None, wanted: Array) -> tuple[Array, Array]:
    """Values that very likely enclose the `wanted`-th largest member of each row, from an even sample of it."""
    rows, size = values.shape
    step = max(1, size // max(256, int(size ** (2 / 3))))
    sample = values[:, ::step].astype(np.float64)
    if absolute:
        np.abs(sample, out=sample)
    if among is not None:
        sample[~among[:, ::step]] = np.nan  # sorted to the end
    sample.sort(axis=1)
    m = (~np.isnan(sample)).sum(1)
    share = wanted / (size if among is None else _count_rows(among))
    middle, margin = m * (1 - share), 3.5 * np.sqrt(m * share * (1 - share)) + 4
    left, right = np.floor(middle - margin).astype(int), np.ceil(middle + margin).astype(int)
    lines = np.arange(rows)
    low = np.where(left < 0, -np.inf, sample[lines, left.clip(0, sample.shape[1] - 1)])
    high = np.where(right >= m, np.inf, sample[lines, right.clip(0, sample.shape[1] - 1)])
    return low, high

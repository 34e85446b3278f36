"""The loops of a training step for float32 in the host's memory, near to one pass over the data each.

They are those of `kernels.cpp`, compiled where setup.py found a compiler; without it NumPy and torch do the same in
more passes, with the same bits. `MPT_BIHALF_KERNELS=off` in the environment does without the compiled ones. Callers
have the general form in torch, for other dtypes and devices.
"""

from __future__ import annotations

import ctypes
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import repeat
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

FEW = 150_000  # elements up to which the calls of a hinted look take longer than a look without hint

HINT = 3  # numbers that say where to look in a row: a middle, a half width, how far that middle is from the last cut

SUMS = 128  # sums of a row that are kept side by side

WORDS = 1024  # words of 32 bits that a fingerprint adds up before it mixes them

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
    library.mpt_fingerprint.argtypes = [pointer, count]
    library.mpt_fingerprint.restype = ctypes.c_uint64
    library.mpt_masked_magnitude.argtypes = [pointer, pointer, ctypes.c_float, count]
    library.mpt_masked_magnitude.restype = count
    library.mpt_signed.argtypes = [pointer, pointer, pointer, count, count, pointer]
    library.mpt_score_gradient.argtypes = [pointer, pointer, ctypes.c_float, pointer, pointer, count, pointer]
    library.mpt_standardise.argtypes = [pointer, pointer, count, count, *[pointer] * 4]
    library.mpt_through_standardised.argtypes = [*[pointer] * 4, ctypes.c_float, count, count, pointer]
    return library


def suit(*tensors: Tensor | None) -> bool:
    """Whether these are for the functions here: float32 or bool, contiguous, plain tensors in the host's memory."""
    for tensor in tensors:
        if tensor is not None and not (
            host_reads_free(tensor)
            and tensor.dtype in (torch.float32, torch.bool)
            and tensor.is_contiguous()
            and _has_memory(tensor)
        ):
            return False
    return not _recorded()


def plain(tensor: Tensor) -> bool:
    """Whether this is a tensor with memory of its own, whose use no graph records; not one of vmap's or a trace's."""
    return _has_memory(tensor) and not _recorded()


def _has_memory(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not (tensor.requires_grad and torch.is_grad_enabled())
        and not functorch.is_functorch_wrapped_tensor(tensor)
        and not functorch.is_legacy_batchedtensor(tensor)
    )


def _recorded() -> bool:
    """Whether operations are recorded as a graph, which would not see what is written without torch."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or by_proxies()


def by_proxies() -> bool:
    """Whether `make_fx` records operations."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def largest(values: Tensor, counts: int | Tensor, hints: Tensor, absolute: bool, among: Tensor | None) -> Tensor:
    """See `selection.largest`. hints: float32 [R, HINT], where to look, changed in place."""
    if compiled():
        each = (
            torch.full(values.shape[:1], counts, device=values.device)
            if isinstance(counts, int)
            else counts.contiguous()
        )
        totals = None if among is None else count(among)
        out = torch.empty(values.shape, dtype=torch.bool, device=values.device)
        _call("largest", values, absolute, among, *values.shape, each, totals, hints, out)
        return out
    members = None if among is None else among.numpy()
    wanted = np.array([[counts]]) if isinstance(counts, int) else counts.numpy()[None]
    return torch.from_numpy(_largest(values.detach().numpy(), absolute, members, wanted, hints.numpy()[None]))


def largest_of_both(values: Tensor, counts: tuple[int, int], hints: Tensor, absolute: bool, among: Tensor) -> Tensor:
    """See `selection.largest_of_both`; without the compiled loops, in one look at the values."""
    wanted, of_groups = np.array(counts)[:, None], hints.numpy().reshape(2, -1, HINT)
    return torch.from_numpy(_largest(values.detach().numpy(), absolute, among.numpy(), wanted, of_groups))


def count(mask: Tensor) -> Tensor:
    """How many are True in each row: int64 [R] of bool [R, D]."""
    if not compiled():
        return torch.from_numpy(count_rows(mask.numpy()))
    totals = torch.empty(mask.shape[0], dtype=torch.int64, device=mask.device)
    _call("count", mask, *mask.shape, totals)
    return totals


def fingerprint(tensor: Tensor) -> int:
    """A number that tells what the host's memory holds: other values of this tensor have it with a chance near 2^-32.

    tensor: of any dtype and layout, plain and in the host's memory; looked at bit by bit.
    """
    memory = _in_memory(tensor).view(torch.uint8)
    if compiled():
        return _call("fingerprint", memory, memory.numel())
    size, whole = memory.numel(), memory.numel() // 4
    words = memory[: 4 * whole].numpy().view(np.uint32)
    in_blocks = whole // WORDS * WORDS
    blocks = [*_few(words[:in_blocks].reshape(-1, WORDS))]
    if in_blocks < whole:
        blocks.append(np.pad(words[in_blocks:], (0, in_blocks + WORDS - whole))[None])
    multipliers = _mixed(np.arange(1, WORDS + 1, dtype=np.uint64)) >> np.uint64(32)
    sums = [part.astype(np.uint64) @ multipliers for part in blocks]
    places = _mixed(np.arange(1, -(-whole // WORDS) + 1, dtype=np.uint64))
    rest = int.from_bytes(memory[4 * whole :].numpy().tobytes(), "little") + (size << 32)
    parts = [_mixed(np.concatenate([places[:0], *sums]) + places), _mixed(np.array([rest], np.uint64))]
    return int(np.concatenate(parts).sum(dtype=np.uint64))


def masked_magnitude(weight: Tensor, mask: Tensor, units: float) -> int:
    """The sum over the mask of floor(abs(weight) * units), each below 2^30; units: a power of two."""
    if compiled():
        return _call("masked_magnitude", weight, mask, units, weight.numel())
    total = 0
    for part, kept in zip(weight.detach().reshape(-1).split(BLOCK), mask.reshape(-1).split(BLOCK), strict=True):
        total += int(part.abs().mul_(units).int().mul_(kept.view(torch.uint8)).sum())
    return total


def signed(positive: Tensor, mask: Tensor | None, alpha: Tensor, spare: Spare | None = None) -> Tensor:
    """+alpha or -alpha by `positive`, 0 outside `mask`: alpha's dtype, the shape of `positive`.

    alpha: broadcasts over `positive`. spare: memory for it. Unlike the other functions here this one is for any device
    and dtype.
    """
    rows = alpha.numel()
    of_filters = rows > 1 and alpha.shape == (positive.shape[0], *[1] * (positive.dim() - 1))
    if compiled() and (rows == 1 or of_filters) and suit(positive, mask, alpha):
        out = (spare or Spare()).like(alpha.expand(positive.shape))
        _call("signed", positive, mask, alpha, rows, positive.numel() // rows, out)
        return out
    signs = positive.to(torch.int8).mul_(2).sub_(1)
    return (signs if mask is None else signs.mul_(mask)).to(alpha.dtype).mul_(alpha)


def score_gradient(g: Tensor, magnitude: Tensor, positive: Tensor, scores: Tensor, spare: Spare) -> Tensor:
    """g * magnitude * b * sign(S), where magnitude is abs(W), or alpha if it has one element. spare: memory for it."""
    out = spare.like(g)
    if compiled():
        weight, alpha = (magnitude, 0.0) if magnitude.numel() == g.numel() > 1 else (None, abs(float(magnitude)))
        _call("score_gradient", g, weight, alpha, positive, scores, g.numel(), out)
        return out
    whole = out, g, magnitude, positive, scores
    parts: Iterable[tuple[Tensor, ...]] = [whole]
    if g.numel() > BLOCK:
        parts = zip(*(t.reshape(-1).split(BLOCK) if t.numel() > 1 else repeat(t) for t in whole), strict=False)
    for part, of_loss, weight, sign, score in parts:
        torch.mul(of_loss, weight.abs(), out=part)
        against = sign.numpy() ^ (score.numpy() >= 0)  # NumPy compares faster, torch does all else faster
        part.view(torch.int32).bitwise_xor_(torch.from_numpy(against).int().mul_(SIGN_BIT))
    return out


def standardise(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `standardise.Standard`, of rows [F, D]."""
    positive = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    mean, deviation, magnitude = of_rows = [torch.empty_like(weight[:, :1]) for _ in range(3)]
    if compiled():
        _call("standardise", weight, mask, *weight.shape, positive, mean, deviation, magnitude)
    else:
        at_once = max(1, BLOCK // weight.shape[1])
        for first in range(0, len(weight), at_once):
            part = slice(first, first + at_once)
            kept = None if mask is None else mask.numpy()[part]
            _standardise(
                weight.detach().numpy()[part], kept, positive.numpy()[part], *[t.numpy()[part] for t in of_rows]
            )
    return positive, mean, deviation, magnitude


def through_standardised(g: Tensor, y: Tensor, gate: Tensor, factor: Tensor, share: float, out: Tensor) -> None:
    """The gradient of W from that of the sigmoid of y, in rows: into `out`; `gate`, the sigmoid, is written over.

    See `kernels.cpp`. All float32 [F, D], but factor [F, 1].
    """
    if compiled():
        _call("through_standardised", g, y, gate, factor, share, *g.shape, out)
        return
    x = torch.ops.aten.sigmoid_backward(g, gate)
    along = torch.from_numpy(_row_sums(torch.mul(x, y, out=gate).numpy())) / share
    shift = torch.from_numpy(_row_sums(x.numpy())) / g.shape[1]
    torch.mul(x.sub_(shift).sub_(torch.mul(y, along, out=gate)), factor, out=out)


def _call(name: str, *arguments: Tensor | float | None) -> int:
    function = getattr(compiled(), f"mpt_{name}")
    result: int = function(*map(_given, function.argtypes, arguments))
    return result


def _given(kind: type, argument: Tensor | float | None) -> int | float | None:
    """An argument as a loop takes it: the address of memory that it can read, or a number that is one."""
    if kind is not ctypes.c_void_p:
        if isinstance(argument, Tensor) or argument is None:
            raise TypeError(f"a compiled loop takes a number here, not {argument!r}")
        return argument
    if argument is None:
        return None
    if not (isinstance(argument, Tensor) and host_reads_free(argument) and argument.is_contiguous()):
        raise TypeError("a compiled loop takes a contiguous tensor in the host's memory here")
    return argument.data_ptr()  # an error of torch for one that has no memory


Array = NDArray[Any]


def _in_memory(tensor: Tensor) -> Tensor:
    """The values in a row, in the order in which they lie there; copied where there are gaps between them."""
    flat = tensor.detach()
    if not flat.is_contiguous():
        order = sorted(range(flat.dim()), key=lambda axis: (flat.stride(axis), flat.shape[axis] == 1), reverse=True)
        flat = flat.permute(order).contiguous()
    return flat.reshape(-1)


def _few(rows: Array) -> Iterator[Array]:
    """The rows in parts that stay in a cache."""
    at_once = max(1, BLOCK // rows.shape[1])
    return (rows[first : first + at_once] for first in range(0, len(rows), at_once))


@np.errstate(over="ignore")
def _mixed(z: Array) -> Array:
    """Every bit of z bears on every bit of what it gives (the finaliser of splitmix64)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _row_sums(rows: Array) -> Array:
    """Of each row [R, 1]: every SUMS-th together, then the upper half of these added to the lower, and again."""
    count, size = rows.shape
    whole = max(size // SUMS * SUMS, min(size, SUMS))
    sums = np.add.reduce(rows[:, :whole].reshape(count, -1, min(size, SUMS)), axis=1)
    sums[:, : size - whole] += rows[:, whole:]
    of_rows = np.ascontiguousarray(sums.T)
    while (left := len(of_rows)) > 1:
        of_rows[: left // 2] += of_rows[(left + 1) // 2 :]
        of_rows = of_rows[: (left + 1) // 2]
    return of_rows.T


@np.errstate(all="ignore")  # a filter that keeps none has no mean magnitude
def _standardise(
    rows: Array, kept: Array | None, positive: Array, mean: Array, deviation: Array, magnitude: Array
) -> None:
    size = rows.shape[1]
    np.divide(_row_sums(rows), np.float32(size), out=mean)
    around = rows - mean
    np.sqrt(_row_sums(around * around) / np.float32(max(size - 1, 1)), out=deviation)
    equal = deviation <= np.float32(8 * np.finfo(np.float32).eps) * np.abs(mean)
    np.greater_equal(around, np.where(equal, np.float32(-np.inf), np.float32(0)), out=positive)
    np.copyto(deviation, 1, where=equal)
    np.copyto(mean, rows[:, :1], where=equal)
    np.abs(around, out=around)
    count = np.full_like(mean, size) if kept is None else count_rows(kept)[:, None].astype(np.float32)
    if kept is not None:
        around *= kept
    np.multiply(_row_sums(around) / count / deviation, ~equal, out=magnitude)


@np.errstate(invalid="ignore", over="ignore")  # infinite and huge values make hints that are none
def _largest(values: Array, absolute: bool, among: Array | None, counts: Array, hints: Array) -> Array:
    """Three looks at the most: around the hint, at what a sample says (Floyd and Rivest 1975), at everything.

    counts: [1, R], of the members; or [2, R], of these and of the others; one column does for all rows. hints: [1 or 2,
    R, HINT].
    """
    rows, size = values.shape
    if not counts.any():
        return np.zeros((rows, size), bool)
    if values.size <= FEW and (of_few := _largest_of_few(values, absolute, among, counts)) is not None:
        return of_few
    counts = np.broadcast_to(counts, (len(counts), rows))
    chosen: Array = np.empty((rows, size), bool)
    pending: slice | Array = slice(None)
    for look in ("hint", "sample", "all"):
        whole = isinstance(pending, slice)
        part, members, wanted = values[pending], among if whole or among is None else among[pending], counts[:, pending]
        if look == "hint":
            middle, half = hints[..., 0], hints[..., 1]
            low, high = middle - half, middle + half
            if not (low <= high).any():
                continue
        elif look == "sample":
            low, high = _sample_brackets(part, absolute, members, wanted)
        else:
            low, high = (np.full(wanted.shape, bound, values.dtype) for bound in (-np.inf, np.inf))
        out = chosen if whole else np.empty(part.shape, bool)
        cuts, found, between = _choose_within(part, absolute, members, wanted, low, high, out)
        news = cuts, (high - low) / 2, between / (size / 256 + 16)
        if whole and found.all():
            _remember(hints, pending, *news)
            return chosen
        found_all = found.all(axis=0)
        row_numbers = np.arange(rows)[pending]
        done, pending = row_numbers[found_all], row_numbers[~found_all]
        if len(done):
            if not whole:
                chosen[done] = out[found_all]
            _remember(hints, done, *(each[:, found_all] for each in news))
        if not len(pending):
            return chosen
    chosen[pending] = False  # NaN among the values: there is no order to cut
    return chosen


def _largest_of_few(values: Array, absolute: bool, among: Array | None, counts: Array) -> Array | None:
    """The same in fewer calls, with each row in order; None where values are tied, or rows ask for other counts."""
    rows, size = values.shape
    if counts.shape[1] > 1 or (among is not None and (len(counts) == 1 or not absolute)):
        return None
    keys = np.abs(values) if absolute else values
    if among is None:
        place = size - int(counts[0, 0])
        chosen = keys >= np.partition(keys, place, axis=1)[:, place, None]
    else:
        # As whole numbers the floats from 0 up have the same order; those of the others are turned round, below 0.
        keys = keys.view(np.int32) ^ (among.view(np.int8) - np.int8(1))
        in_order = np.sort(keys, axis=1)
        count, of_others = counts[:, 0].tolist()
        chosen = keys >= in_order[:, size - count, None] if count else np.zeros(keys.shape, bool)
        if of_others:
            chosen |= keys <= in_order[:, of_others - 1, None]
    return chosen if np.count_nonzero(chosen) == counts.sum() * rows else None


def _remember(hints: Array, rows: slice | Array, cuts: Array, half: Array, crowded: Array) -> None:
    """Where to look in these rows next time: cuts were found within `half`, `crowded` by so many times too much."""
    expected, drift = hints[:, rows, 0], hints[:, rows, 2]
    moved = cuts - expected
    missed, moved = np.abs(moved), moved + drift
    median = cuts.shape[1] // 2
    usual = np.partition(missed, median)[:, median, None] if hints.shape[1] > 1 else 0  # rows move alike
    half = np.where(np.isfinite(half), half / np.fmax(crowded, 1), np.abs(cuts) / 16)
    half = np.fmax(2 * missed, np.fmax(half, 8 * usual))  # of what is not known yet, NaN, it takes the other
    drift = np.where(np.isfinite(moved), (drift + moved) / 2, 0)
    hints[:, rows, 0] = cuts + drift
    hints[:, rows, 1] = np.where(np.isfinite(half), half, np.abs(cuts) / 16)
    hints[:, rows, 2] = drift


def _choose_within(
    values: Array, absolute: bool, among: Array | None, wanted: Array, low: Array, high: Array, out: Array
) -> tuple[Array, Array, Array]:
    """Say in `out` what ranks at or above each row's `wanted`-th largest member, looked for in [low, high].

    wanted, low, high: [1 or 2, R] as in `_largest`; of two groups `out` tells for each element by its own.
    Returns the values of these members (NaN where none is wanted), whether they were found, and how many members were
    in between, [1 or 2, R] each; of a row where one was not found `out` says nothing.
    """
    size = values.shape[1]
    above, places = _scan(values, absolute, among, low, high, out)
    at, starts = np.concatenate(places), np.arange(0, values.size + 1, size)
    numbers = np.concatenate([np.diff(np.searchsorted(of_group, starts)) for of_group in places])
    ranked = values.reshape(-1)[at]
    if absolute:
        np.abs(ranked, out=ranked)
    rank = wanted.reshape(-1) - above
    found = (rank <= numbers) & ((rank > 0) | (wanted.reshape(-1) + above == 0))
    # The candidates as a table, a line for each row, filled up at the end.
    real = np.arange(numbers.max() + 2) < numbers[:, None]
    table = np.full(real.shape, -np.inf, values.dtype)
    table[real] = ranked
    place = -np.minimum(np.maximum(rank, 1), real.shape[1] - 1)
    in_order = np.sort(table, axis=1) if len(rank) > 1 else np.partition(table, [place[0] - 1, place[0]], axis=1)
    lines = np.arange(len(rank))
    cuts = np.where(found & (rank > 0), in_order[lines, place], np.nan)  # NaN: none is chosen
    results = cuts.reshape(wanted.shape), found.reshape(wanted.shape), numbers.reshape(wanted.shape)
    by_group = among is None or len(wanted) == 2
    if by_group and not (in_order[lines, place - 1] == cuts).any():
        out.reshape(-1)[at] = ranked >= np.repeat(cuts, numbers)
        return results
    # Of equal candidates the last are chosen, as many as the rank still asks for.
    lowest, cutting = np.full(len(rank), values.size), np.flatnonzero(found & (rank > 0))
    table, cut = table[cutting], cuts[cutting, None]
    ties = (table == cut) & real[cutting]
    surplus = count_rows(ties) - (rank[cutting] - count_rows(table > cut))
    first = (ties.cumsum(axis=1, dtype=np.int32) > surplus[:, None]).argmax(axis=1)
    lowest[cutting] = at[(numbers.cumsum() - numbers)[cutting] + first]
    if by_group:
        cut = np.repeat(cuts, numbers)
        out.reshape(-1)[at] = (ranked > cut) | ((ranked == cut) & (at >= np.repeat(lowest, numbers)))
        return results
    for flat, rows_here, ranked in _blocks(values, absolute):  # what is no member has its place too
        part = np.greater_equal(ranked, cuts[rows_here, None], out=out.reshape(-1)[flat].reshape(ranked.shape))
        ties = ranked == cuts[rows_here, None]
        here = lowest[rows_here]
        if np.count_nonzero(ties) > np.count_nonzero((here >= flat.start) & (here < flat.stop)):
            at = np.flatnonzero(ties) + flat.start
            part.reshape(-1)[at - flat.start] = at >= lowest[at // size]
    return results


def _scan(
    values: Array, absolute: bool, among: Array | None, low: Array, high: Array, out: Array
) -> tuple[Array, list[Array]]:
    """Say in `out` what is more than `high`, member or not, each element by the bounds of its own group.

    low, high: [1 or 2, R]. Returns how many members that are in each row, [R] or [2 R], and for each group the flat
    places of those that are not but at least `low`.
    """
    inside, groups = np.empty(out.shape, bool), len(low)
    for flat, lines, ranked in _blocks(values, absolute):
        masks = [mask.reshape(-1)[flat].reshape(ranked.shape) for mask in (out, inside)]
        _compare(ranked, low[0, lines], high[0, lines], *masks)
        if among is not None and groups == 2:
            members = among.reshape(-1)[flat].reshape(ranked.shape)
            of_others = np.empty_like(members), np.empty_like(members)
            _compare(ranked, low[1, lines], high[1, lines], *of_others)
            for mask, other in zip(masks, of_others, strict=True):
                _merge(mask, members, other)
    if among is None:
        return count_rows(out), [np.flatnonzero(inside)]
    above = count_rows(out & among)
    if groups == 1:
        return above, [np.flatnonzero(inside & among)]
    at = np.flatnonzero(inside)
    members = among.reshape(-1)[at]
    return np.concatenate([above, count_rows(out) - above]), [at[members], at[~members]]


def _compare(ranked: Array, low: Array, high: Array, higher: Array, between: Array) -> None:
    """Where in each row is more than `high`, and where at least `low` but not more than `high`: into the last two."""
    np.greater(ranked, high[:, None], out=higher)
    np.greater_equal(ranked, low[:, None], out=between)
    np.greater(between, higher, out=between)


def _merge(mask: Array, members: Array, other: Array) -> None:
    """Where there is no member: what `other` says, into `mask`."""
    mask ^= other
    mask &= members
    mask ^= other


def _blocks(values: Array, absolute: bool) -> Iterator[tuple[slice, slice, Array]]:
    """The rows in parts that stay in the processor's cache: place in the flat array, rows, what is ranked [rows, D]."""
    rows, size = values.shape
    step = min(size, BLOCK) * max(1, BLOCK // size) if size else 1
    flat, magnitudes = values.reshape(-1), np.empty(step, values.dtype)
    for row in range(0, rows, max(1, BLOCK // size)):
        lines = slice(row, min(row + max(1, BLOCK // size), rows))
        for start in range(row * size, lines.stop * size, step):
            place = slice(start, min(start + step, lines.stop * size))
            part = flat[place]
            ranked = np.abs(part, out=magnitudes[: len(part)]) if absolute else part
            yield place, lines, ranked.reshape(lines.stop - lines.start, -1)


def count_rows(mask: Array) -> Array:
    """How many are True in each row, by the faster way for rows of this length."""
    rows, size = mask.shape
    if size > 8192:
        return np.array([np.count_nonzero(row) for row in mask], dtype=int)
    whole = size // 8 * 8
    total = mask[:, whole:].sum(axis=1)
    for first in range(0, whole, 8 * 255):  # eight neighbours are added at once; a byte says no more than 255
        eights = np.add.reduce(mask[:, first : min(first + 8 * 255, whole)].view(np.uint64), axis=1)
        total += eights.view(np.uint8).reshape(rows, 8).sum(axis=1, dtype=int)
    return total


def _sample_brackets(values: Array, absolute: bool, among: Array | None, wanted: Array) -> tuple[Array, Array]:
    """Values that very likely enclose the `wanted`-th largest member of each row, from an even sample of it."""
    rows, size = values.shape
    step = max(1, size // max(256, int(size ** (2 / 3))))
    sample = values[:, ::step].astype(np.float64)
    if absolute:
        np.abs(sample, out=sample)
    low, high = np.empty(wanted.shape, values.dtype), np.empty(wanted.shape, values.dtype)
    lines = np.arange(rows)
    for group, members in enumerate([among] if among is None or len(wanted) == 1 else [among, ~among]):
        # What is no member is sorted to the end.
        part = np.sort(sample if members is None else np.where(members[:, ::step], sample, np.nan), axis=1)
        m = (~np.isnan(part)).sum(1)
        share = wanted[group] / (size if members is None else count_rows(members))
        middle, margin = m * (1 - share), 3.5 * np.sqrt(m * share * (1 - share)) + 4
        left, right = np.floor(middle - margin).astype(int), np.ceil(middle + margin).astype(int)
        low[group] = np.where(left < 0, -np.inf, part[lines, left.clip(0, part.shape[1] - 1)])
        high[group] = np.where(right >= m, np.inf, part[lines, right.clip(0, part.shape[1] - 1)])
    return low, high

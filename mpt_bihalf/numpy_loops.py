"""The loops of `kernels.cpp` where there is no compiler: the same bits in more passes, by NumPy and torch.

What has the name of a function of `kernels` does its work, on float32 and bool that lie in a row, in the host's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

BLOCK = 2**18  # elements that are looked at together: they stay in a cache

SUMS = 128  # sums of a row that are kept side by side

WORDS = 1024  # words of 32 bits that a fingerprint adds up before it mixes them

SIGN_BIT = torch.iinfo(torch.int32).min


def fingerprint(memory: Array) -> int:
    """See `kernels.fingerprint`. memory: uint8 [N]."""
    size, whole = memory.size, memory.size // 4
    words = memory[: 4 * whole].view(np.uint32)
    in_blocks = whole // WORDS * WORDS
    blocks = [*_few(words[:in_blocks].reshape(-1, WORDS))]
    if in_blocks < whole:
        blocks.append(np.pad(words[in_blocks:], (0, in_blocks + WORDS - whole))[None])
    multipliers = _mixed(np.arange(1, WORDS + 1, dtype=np.uint64)) >> np.uint64(32)
    sums = [part.astype(np.uint64) @ multipliers for part in blocks]
    places = _mixed(np.arange(1, -(-whole // WORDS) + 1, dtype=np.uint64))
    rest = int.from_bytes(memory[4 * whole :].tobytes(), "little") + (size << 32)
    parts = [_mixed(np.concatenate([places[:0], *sums]) + places), _mixed(np.array([rest], np.uint64))]
    return int(np.concatenate(parts).sum(dtype=np.uint64))


def masked_magnitude(weight: Tensor, mask: Tensor, units: float) -> int:
    """See `kernels.masked_magnitude`."""
    total = 0
    for part, kept in zip(weight.detach().reshape(-1).split(BLOCK), mask.reshape(-1).split(BLOCK), strict=True):
        total += int(part.abs().mul_(units).int().mul_(kept.view(torch.uint8)).sum())
    return total


def score_gradient(g: Tensor, magnitude: Tensor, positive: Tensor, scores: Tensor, out: Tensor) -> None:
    """See `kernels.score_gradient`; into `out`."""
    whole = out, g, magnitude, positive, scores
    parts: Iterable[tuple[Tensor, ...]] = [whole]
    if g.numel() > BLOCK:
        parts = zip(*(t.reshape(-1).split(BLOCK) if t.numel() > 1 else repeat(t) for t in whole), strict=False)
    for part, of_loss, weight, sign, score in parts:
        torch.mul(of_loss, weight.abs(), out=part)
        against = sign.numpy() ^ (score.numpy() >= 0)  # NumPy compares faster, torch does all else faster
        part.view(torch.int32).bitwise_xor_(torch.from_numpy(against).int().mul_(SIGN_BIT))


def through_standardised(g: Tensor, y: Tensor, gate: Tensor, factor: Tensor, share: float, out: Tensor) -> None:
    """See `kernels.through_standardised`."""
    x = torch.ops.aten.sigmoid_backward(g, gate)
    along = torch.from_numpy(row_sums(torch.mul(x, y, out=gate).numpy())) / share
    shift = torch.from_numpy(row_sums(x.numpy())) / g.shape[1]
    torch.mul(x.sub_(shift).sub_(torch.mul(y, along, out=gate)), factor, out=out)


def standardise(rows: Array, kept: Array | None, *out: Array) -> None:
    """See `kernels.standardise`; into `out`: positive [F, D], mean, deviation, magnitude [F, 1]."""
    at_once = max(1, BLOCK // rows.shape[1])
    for first in range(0, len(rows), at_once):
        part = slice(first, first + at_once)
        _standardise_few(rows[part], None if kept is None else kept[part], *(array[part] for array in out))


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


def row_sums(rows: Array) -> Array:
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


def signed_sums(values: Array, positive: Array | None, mask: Array | None, out: Array) -> None:
    """See `kernels.signed_sums`; into `out`."""
    signed = np.abs(values) if positive is None else np.where(positive, values, -values)
    if mask is not None:
        signed = np.where(mask, signed, np.float32(0))
    out[:] = row_sums(signed)[:, 0]


def distances(weight: Array, alpha: Array, mask: Array | None, squared: bool, sums: Array, slopes: Array) -> None:
    """See `kernels.distances`; into `sums` and `slopes`."""
    d = alpha - np.abs(weight)
    for value, out in ((d * d if squared else np.abs(d), sums), (2 * d if squared else np.sign(d), slopes)):
        out[:] = row_sums(value if mask is None else np.where(mask, value, np.float32(0)))[:, 0]


@np.errstate(all="ignore")  # a filter that keeps none has no mean magnitude
def _standardise_few(
    rows: Array, kept: Array | None, positive: Array, mean: Array, deviation: Array, magnitude: Array
) -> None:
    size = rows.shape[1]
    np.divide(row_sums(rows), np.float32(size), out=mean)
    around = rows - mean
    np.sqrt(row_sums(around * around) / np.float32(max(size - 1, 1)), out=deviation)
    equal = deviation <= np.float32(8 * np.finfo(np.float32).eps) * np.abs(mean)
    np.greater_equal(around, np.where(equal, np.float32(-np.inf), np.float32(0)), out=positive)
    np.copyto(deviation, 1, where=equal)
    np.copyto(mean, rows[:, :1], where=equal)
    np.abs(around, out=around)
    count = np.full_like(mean, size) if kept is None else count_rows(kept)[:, None].astype(np.float32)
    if kept is not None:
        around *= kept
    np.multiply(row_sums(around) / count / deviation, ~equal, out=magnitude)


@np.errstate(invalid="ignore", over="ignore")  # infinite and huge values make hints that are none
def largest(values: Array, absolute: bool, among: Array | None, counts: Array, hints: Array) -> Array:
    """Three looks at the most: around the hint, at what a sample says (Floyd and Rivest 1975), at everything.

    counts: [1, R], of the members; or [2, R], of these and of the others; one column does for all rows. hints: [1 or 2,
    R, HINT].
    """
    rows, size = values.shape
    if not counts.any():
        return np.zeros((rows, size), bool)
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

    wanted, low, high: [1 or 2, R] as in `largest`; of two groups `out` tells for each element by its own.
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

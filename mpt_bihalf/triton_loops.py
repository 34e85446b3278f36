"""The loops of `kernels` on an accelerator, in Triton: the same bits, in few launches, without waiting for the device.

Exact selection does not sort. A number's key is an unsigned integer that orders as the number does. A short row is held
by one program, which finds the cut's key bit by bit from the highest: a bit is set where enough keys are still as high.
Of a long row many programs count how often each value of eleven bits of the key occurs, and one program takes the
value that holds the cut, until no bits are left. Where equal keys straddle the cut, their places are searched in
the same way. Programs of one launch share nothing but integers that are added up, so no order among them matters.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .devices import launching_on
from .numpy_loops import SUMS

SHORT = 2**14  # numbers of a row that one program holds
BLOCK = 2**12  # of a longer row that a program looks at
DIGIT = 11  # bits of a key that are counted at once
ELEMENTS = 2**10  # of a tensor, where each is for itself
LONGEST = 2**17  # numbers of a row that are standardised here, by one program


@triton.jit
def _key(x, ABSOLUTE: tl.constexpr):
    """Integers that order as x, or its magnitude, does; -0 is 0."""
    if x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    else:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if ABSOLUTE:
        return magnitude
    return tl.where(magnitude == 0, 0, bits) ^ tl.where((bits != magnitude) & (magnitude != 0), 0xFFFFFFFF, 0x80000000)


@triton.jit
def _highest(keys, members, count, BITS: tl.constexpr):
    """The highest key that at least `count` of the members reach: 0 for a count of 0."""
    found = tl.zeros((), tl.uint32)
    for i in range(BITS):
        trial = found | (tl.full((), 1, tl.uint32) << (BITS - 1 - i))
        reach = tl.sum((members & (keys >= trial)).to(tl.int32))
        found = tl.where(reach >= count, trial, found)
    return found


@triton.jit
def _chosen(keys, places, members, count, PLACES: tl.constexpr):
    """Whether each element, member or not, ranks at or above the `count`-th of the members."""
    cut = _highest(keys, members, count, 32)
    ties = count - tl.sum((members & (keys > cut)).to(tl.int32))
    first = _highest(places.to(tl.uint32), members & (keys == cut), ties, PLACES)
    return (count > 0) & ((keys > cut) | ((keys == cut) & (places.to(tl.uint32) >= first)))


@triton.jit(do_not_specialize=["count", "other_count"])
def _short_rows(
    values, among, counts, out, size, count, other_count,
    ABSOLUTE: tl.constexpr, AMONG: tl.constexpr, EACH: tl.constexpr, BOTH: tl.constexpr,
    WIDTH: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """out = what is chosen of a row; EACH: `counts` has a count a row; BOTH: and `other_count` of those not `among`."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, WIDTH)
    inside = places < size
    keys = _key(tl.load(values + row * size + places, inside, 0.0), ABSOLUTE)
    members = inside
    if AMONG:
        members = inside & (tl.load(among + row * size + places, inside, 0) != 0)
    wanted = count
    if EACH:
        wanted = tl.load(counts + row).to(tl.int32)
    chosen = _chosen(keys, places, members, wanted, PLACES)
    if BOTH:
        chosen = tl.where(members, chosen, _chosen(keys, places, inside & ~members, other_count, PLACES))
    tl.store(out + row * size + places, chosen.to(tl.int8), inside)


# What is known of the cut of each group of each long row: int64 [rows * groups, STATE].
STATE = tl.constexpr(4)
CUT = tl.constexpr(0)  # the bits of its key that are known
LEFT = tl.constexpr(1)  # which of the members with these bits it is, from the top
EQUAL = tl.constexpr(2)  # how many of them there are
FIRST = tl.constexpr(3)  # the bits of its place that are known


@triton.jit
def _members(among, at, inside, GROUP: tl.constexpr, AMONG: tl.constexpr):
    """Which elements are of a group: of 0 those among, or all; of 1 the others."""
    if AMONG:
        told = tl.load(among + at, inside, 0)
        return inside & (told == 0 if GROUP else told != 0)
    return inside


@triton.jit
def _tally(
    values, among, state, tallies, size, blocks, shift,
    ABSOLUTE: tl.constexpr, AMONG: tl.constexpr, GROUPS: tl.constexpr, OF_PLACES: tl.constexpr, OPENING: tl.constexpr,
    BITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Count how often each value of a digit occurs among members that have the bits above it, of keys or of places."""
    row = tl.program_id(0).to(tl.int64) // blocks
    places = tl.program_id(0).to(tl.int64) % blocks * WIDTH + tl.arange(0, WIDTH)
    inside = places < size
    for group in tl.static_range(GROUPS):
        known = state + (row * GROUPS + group) * STATE
        open_yet = True
        if OF_PLACES and not AMONG:  # else the lowest chosen's place tells of the others too
            open_yet = tl.load(known + LEFT) < tl.load(known + EQUAL)
        if open_yet:
            keys = _key(tl.load(values + row * size + places, inside, 0.0), ABSOLUTE)
            members = _members(among, row * size + places, inside, group, AMONG)
            if OF_PLACES:
                members &= keys == tl.load(known + CUT).to(tl.uint32)
                keys = places.to(tl.uint32)
            if not OPENING:
                bits = tl.load(known + (FIRST if OF_PLACES else CUT)).to(tl.uint32)
                members &= (keys >> (shift + BITS)) == bits
            digits = ((keys >> shift) & ((1 << BITS) - 1)).to(tl.int32)
            found = tl.histogram(digits, 1 << BITS, members)
            to = tallies + ((row * GROUPS + group) << BITS) + tl.arange(0, 1 << BITS)
            tl.atomic_add(to, found, found > 0)


@triton.jit
def _descend(state, tallies, AMONG: tl.constexpr, OF_PLACES: tl.constexpr, BITS: tl.constexpr):
    """Take the digit that holds the cut, and clear the tallies."""
    known = state + tl.program_id(0).to(tl.int64) * STATE
    at = tallies + (tl.program_id(0).to(tl.int64) << BITS) + tl.arange(0, 1 << BITS)
    left = tl.load(known + LEFT)
    if (not OF_PLACES) or AMONG or left < tl.load(known + EQUAL):
        found = tl.load(at).to(tl.int64)
        reach = tl.cumsum(found, 0, reverse=True)  # members whose digit is at least this
        digit = tl.maximum(tl.sum((reach >= left).to(tl.int64)) - 1, 0)
        here = tl.arange(0, 1 << BITS) == digit
        equal = tl.sum(tl.where(here, found, 0))
        tl.store(known + LEFT, left - tl.sum(tl.where(here, reach, 0)) + equal)
        if not OF_PLACES:
            tl.store(known + EQUAL, equal)
        bits = known + (FIRST if OF_PLACES else CUT)
        tl.store(bits, (tl.load(bits) << BITS) | digit)
        tl.store(at, tl.zeros((1 << BITS,), tl.int32))


@triton.jit
def _mark(
    values, among, counts, state, out, size, blocks,
    ABSOLUTE: tl.constexpr, AMONG: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out = whether each element of a long row ranks at or above its cut: that of its group, or the only one."""
    row = tl.program_id(0).to(tl.int64) // blocks
    places = tl.program_id(0).to(tl.int64) % blocks * WIDTH + tl.arange(0, WIDTH)
    inside = places < size
    keys = _key(tl.load(values + row * size + places, inside, 0.0), ABSOLUTE)
    chosen = inside
    for group in tl.static_range(GROUPS):
        known = state + (row * GROUPS + group) * STATE
        cut = tl.load(known + CUT).to(tl.uint32)
        above = (keys > cut) | ((keys == cut) & (places >= tl.load(known + FIRST)))
        above &= tl.load(counts + row * GROUPS + group) > 0
        if group == 0:
            chosen = above
        else:
            chosen = tl.where(_members(among, row * size + places, inside, group, AMONG), above, chosen)
    tl.store(out + row * size + places, chosen.to(tl.int8), inside)


@triton.jit
def _signed(positive, mask, alphas, out, size, total, MASKED: tl.constexpr, WIDTH: tl.constexpr):
    """out = +alpha or -alpha of the row by `positive`, 0 outside the mask; `size` elements a row."""
    at = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = at < total
    alpha = tl.load(alphas + at // size, inside, 0.0).to(tl.float32)
    used = tl.where(tl.load(positive + at, inside, 0) != 0, alpha, -alpha)
    if MASKED:
        used = tl.where(tl.load(mask + at, inside, 0) != 0, used, tl.zeros_like(used))
    tl.store(out + at, used.to(out.dtype.element_ty), inside)


@triton.jit
def _score_gradient(g, factor, positive, scores, out, total, ONE: tl.constexpr, WIDTH: tl.constexpr):
    """out = g abs(factor) b sign(S); ONE: one factor for all."""
    at = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = at < total
    of_loss = tl.load(g + at, inside, 0.0).to(tl.float32)
    magnitude = tl.abs((tl.load(factor) if ONE else tl.load(factor + at, inside, 0.0)).to(tl.float32))
    along = (tl.load(positive + at, inside, 0) != 0) == (tl.load(scores + at, inside, 0.0).to(tl.float32) >= 0)
    product = of_loss * magnitude
    tl.store(out + at, tl.where(along, product, -product).to(out.dtype.element_ty), inside)


@triton.jit
def _folded(sums, left, LANES: tl.constexpr):
    """The sum of the first `left` of these, the upper half added to the lower until one is left."""
    lanes = tl.arange(0, LANES)
    for _ in tl.static_range(7):
        half = (left + 1) // 2
        upper = tl.gather(sums, tl.minimum(lanes + half, LANES - 1), 0)
        sums = tl.where(lanes < left - half, sums + upper, sums)
        left = half
    return tl.sum(tl.where(lanes == 0, sums, 0.0))


@triton.jit(do_not_specialize=["size"])
def _standardise(
    w, mask, positive, means, deviations, magnitudes, size, EPS: tl.constexpr, MASKED: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """See `standardise.Standard`, of a row; each sum in the order of `kernels.cpp`, so the bits are its."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, LANES)
    left = tl.minimum(size, LANES)
    x, out, kept = w + row * size, positive + row * size, mask + row * size
    sums = tl.zeros((LANES,), tl.float32)
    for start in range(0, size, LANES):
        sums += tl.load(x + start + lanes, start + lanes < size, 0.0)
    mean = tl.div_rn(_folded(sums, left, LANES), size.to(tl.float32))
    sums = tl.zeros((LANES,), tl.float32)
    for start in range(0, size, LANES):
        inside = start + lanes < size
        around = tl.where(inside, tl.load(x + start + lanes, inside, 0.0) - mean, 0.0)
        sums += around * around
    share = tl.maximum(size - 1, 1).to(tl.float32)
    deviation = tl.sqrt_rn(tl.div_rn(_folded(sums, left, LANES), share))
    equal = deviation <= EPS * tl.abs(mean)
    least = tl.where(equal, float("-inf"), 0.0)
    deviation = tl.where(equal, 1.0, deviation)
    sums = tl.zeros((LANES,), tl.float32)
    counts = tl.zeros((LANES,), tl.int32)
    for start in range(0, size, LANES):
        inside = start + lanes < size
        around = tl.load(x + start + lanes, inside, 0.0) - mean
        tl.store(out + start + lanes, (around >= least).to(tl.int8), inside)
        of_row = inside
        if MASKED:
            of_row = inside & (tl.load(kept + start + lanes, inside, 0) != 0)
        sums += tl.where(of_row, tl.abs(around), 0.0)
        counts += of_row.to(tl.int32)
    magnitude = tl.div_rn(_folded(sums, left, LANES), tl.sum(counts).to(tl.float32))
    tl.store(means + row, tl.where(equal, tl.load(x), mean))
    tl.store(deviations + row, deviation)
    tl.store(magnitudes + row, tl.div_rn(magnitude, deviation) * tl.where(equal, 0.0, 1.0))


def largest(values: Tensor, counts: int | Tensor, absolute: bool, among: Tensor | None) -> Tensor:
    """See `Selection.largest`; of float32, bfloat16 or float16 [R, D]."""
    return _largest(values, counts, None, absolute, among)


def largest_of_both(values: Tensor, counts: tuple[int, int], absolute: bool, among: Tensor) -> Tensor:
    """See `Selection.largest_of_both`."""
    return _largest(values, counts[0], counts[1], absolute, among)


def _largest(values: Tensor, count: int | Tensor, other: int | None, absolute: bool, among: Tensor | None) -> Tensor:
    rows, size = values.shape
    out = torch.empty(values.shape, dtype=torch.bool, device=values.device)
    each = isinstance(count, Tensor)
    members = values if among is None else among.view(torch.int8)
    marks = out.view(torch.int8)
    how: dict[str, Any] = {"ABSOLUTE": absolute, "AMONG": among is not None}
    with launching_on(values.device):
        if size <= SHORT:
            width = triton.next_power_of_2(size)
            counts = count.contiguous() if isinstance(count, Tensor) else values
            how |= {"EACH": each, "BOTH": other is not None, "WIDTH": width, "PLACES": (size - 1).bit_length()}
            one = 0 if isinstance(count, Tensor) else count
            how["num_warps"] = max(1, min(16, width // 512))
            _short_rows[rows,](values, members, counts, marks, size, one, other or 0, **how)
            return out
        groups = 1 if other is None else 2
        if isinstance(count, Tensor):
            counts = count.reshape(rows, 1)
        else:
            counts = torch.full((rows, 1), count, dtype=torch.int64, device=values.device)
        if other is not None:
            counts = torch.cat([counts, torch.full_like(counts, other)], dim=1)
        counts = counts.contiguous()
        state = torch.zeros((rows * groups, STATE.value), dtype=torch.int64, device=values.device)
        state[:, LEFT.value] = counts.view(-1)
        tallies = torch.zeros((rows * groups, 1 << DIGIT), dtype=torch.int32, device=values.device)
        blocks = triton.cdiv(size, BLOCK)
        grid = (blocks * rows,)
        how |= {"GROUPS": groups, "WIDTH": BLOCK}
        for of_places, bits in ((False, 32), (True, (size - 1).bit_length())):
            for i, (shift, width) in enumerate(_digits(bits)):
                of = {"OF_PLACES": of_places, "BITS": width}
                _tally[grid](
                    values, members, state, tallies, size, blocks, shift, OPENING=i == 0, num_warps=8, **of, **how
                )
                _descend[rows * groups,](state, tallies, AMONG=how["AMONG"], **of)
        _mark[grid](values, members, counts, state, marks, size, blocks, **how)
    return out


def _digits(bits: int) -> list[tuple[int, int]]:
    """Shift and width of each digit of so many bits, from the highest."""
    count = -(-bits // DIGIT)
    ends = [bits * i // max(count, 1) for i in range(count, -1, -1)]
    return [(low, high - low) for high, low in pairwise(ends)]


def signed(positive: Tensor, mask: Tensor | None, alpha: Tensor) -> Tensor:
    """See `kernels.signed`; alpha has one element, or one for each filter."""
    out = torch.empty(positive.shape, dtype=alpha.dtype, device=alpha.device)
    total = positive.numel()
    if total:
        kept = positive if mask is None else mask
        with launching_on(alpha.device):
            _signed[triton.cdiv(total, ELEMENTS),](
                positive.view(torch.int8), kept.view(torch.int8), alpha.reshape(-1), out, total // alpha.numel(), total,
                MASKED=mask is not None, WIDTH=ELEMENTS,
            )  # fmt: skip
    return out


def score_gradient(g: Tensor, factor: Tensor, positive: Tensor, scores: Tensor) -> Tensor:
    """See `kernels.score_gradient`."""
    out, total = torch.empty_like(g), g.numel()
    if total:
        with launching_on(g.device):
            _score_gradient[triton.cdiv(total, ELEMENTS),](
                g, factor, positive.view(torch.int8), scores, out, total, ONE=factor.numel() == 1, WIDTH=ELEMENTS
            )
    return out


def standardise(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `kernels.standardise`."""
    positive = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    mean, deviation, magnitude = of_rows = [torch.empty_like(weight[:, :1]) for _ in range(3)]
    kept = positive if mask is None else mask
    how = {"EPS": 8 * torch.finfo(torch.float32).eps, "MASKED": mask is not None, "LANES": SUMS}
    with launching_on(weight.device):
        # A fused multiply-add would round otherwise.
        tensors = weight, kept.view(torch.int8), positive.view(torch.int8), *of_rows
        _standardise[weight.shape[0],](*tensors, weight.shape[1], **how, enable_fp_fusion=False)
    return positive, mean, deviation, magnitude

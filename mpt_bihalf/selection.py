"""Exact order statistics: masks of exactly the largest so many of each row, without sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels


def largest(
    values: Tensor,
    count: int | Tensor,
    absolute: bool = False,
    among: Tensor | None = None,
    hints: Tensor | None = None,
) -> Tensor:
    """Which elements of each row are its `count` largest, as a mask; of equal ones those of higher index.

    values: any float dtype [R, D] without NaN. count: 0 to D, for all rows or as int64 [R].
    absolute: rank the magnitudes. among: bool [R, D], where only some elements count; the mask then says of every
    element, member or not, whether it ranks at or above the lowest chosen member.
    hints: from `no_hints`, the same in each step; they save time where values change little. Others are not looked at.

    Returns bool [R, D]: the top of a stable ascending sort. Off the CPU nothing waits for the device.
    """
    rows, size = values.shape
    if values.numel() == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()  # exact, and order-preserving, for all narrower float types
    if kernels.suit(values, among):
        return kernels.largest(values, count, fitting(hints, values), absolute, among)
    if absolute:
        values = values.abs()
    if isinstance(count, int) and among is None and not 0 < count < size:
        return torch.full_like(values, count > 0, dtype=torch.bool)

    wanted = (torch.full((rows,), count, device=values.device) if isinstance(count, int) else count).unsqueeze(1)
    members = values if among is None else values.masked_fill(~among, -torch.inf)
    cut = _lowest_chosen(members, count)
    chosen, ties = members >= cut, members == cut
    if among is not None:
        chosen, ties = chosen & among, ties & among
    # Of the ties the first `surplus` are not chosen: this many elements stand before the lowest that is.
    surplus = chosen.sum(1, keepdim=True) - wanted
    index = (ties.cumsum(1) <= surplus).sum(1, keepdim=True)
    place = torch.arange(size, device=values.device)
    return ((values > cut) | ((values == cut) & (place >= index))) & (wanted > 0)


def largest_of_both(
    values: Tensor, counts: tuple[int, int], among: Tensor, absolute: bool = False, hints: Tensor | None = None
) -> Tensor:
    """Which are the counts[0] largest of those in `among`, or the counts[1] largest of the others, row by row.

    counts: each 0 to as many as there are. hints: from `no_hints` of twice the rows. All else as in `largest`.
    """
    rows = len(values)
    hints = fitting(hints, values, 2)
    if not kernels.compiled() and kernels.suit(values, among) and values.numel():
        return kernels.largest_of_both(values, counts, hints, absolute, among)
    groups = among, ~among
    first, second = (
        largest(values, count, absolute, group, part).logical_and_(group)
        for count, group, part in zip(counts, groups, (hints[:rows], hints[rows:]), strict=True)
    )
    return first.logical_or_(second)


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The `k`-th smallest value of each row, `k` counted from 0: [R] of [R, D], any float dtype, without NaN."""
    return values.masked_fill(~largest(values, values.shape[1] - k), torch.inf).amin(1)


def no_hints(values: Tensor, groups: int = 1) -> Tensor:
    """Hints for a selection of these values [R, D] that say nothing yet: float32 [groups * R, HINT]."""
    return torch.full((groups * len(values), kernels.HINT), torch.nan, dtype=torch.float32, device=values.device)


def fitting(hints: Tensor | None, values: Tensor, groups: int = 1) -> Tensor:
    """The hints where they are for such values, else new ones."""
    if hints is None or hints.device != values.device or hints.shape != (groups * len(values), kernels.HINT):
        return no_hints(values, groups)
    return hints


def count_kept(mask: Tensor) -> Tensor:
    """How many are True in each row: int64 [R] of bool [R, D]."""
    return kernels.count(mask) if kernels.suit(mask) else mask.sum(1)


def _lowest_chosen(values: Tensor, count: int | Tensor) -> Tensor:
    """The `count`-th largest value of each row: [R, 1]; of a row with none to choose, any value."""
    size = values.shape[1]
    if isinstance(count, int):
        rank = min(size - count, size - 1)
        return values.sort(dim=1).values[:, rank : rank + 1]
    return values.sort(dim=1).values.gather(1, (size - count).clamp(max=size - 1).unsqueeze(1))

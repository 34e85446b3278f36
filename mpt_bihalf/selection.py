"""Exact order statistics: masks of exactly the largest so many of each row, without sorting."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from . import kernels
from .devices import host_reads_free


class Selection:
    """Which elements of each row are its largest; it looks first where its cuts were the last time.

    That saves time where values change little from step to step, and changes nothing. One of its own for each question.
    """

    def __init__(self) -> None:
        self._hints: Tensor | None = None  # float32 [groups * R, HINT], of `kernels.largest`

    def largest(
        self, values: Tensor, count: int | Tensor, absolute: bool = False, among: Tensor | None = None
    ) -> Tensor:
        """Which elements of each row are its `count` largest, as a mask; of equal ones those of higher index.

        values: any float dtype [R, D] without NaN. count: 0 to D, for all rows or as int64 [R].
        absolute: rank the magnitudes. among: bool [R, D], where only some elements count; the mask then says of every
        element, member or not, whether it ranks at or above the lowest chosen member.

        Returns bool [R, D]: the top of a stable ascending sort. Off the CPU nothing waits for the device.
        """
        if values.numel() and (loops := kernels.on_accelerator(values, among)):
            return cast(Tensor, loops.largest(values, count, absolute, among))
        values = _ordered(values)
        if kernels.suit(values, among) and values.numel():
            return kernels.largest(values, count, self._fitting(values, 1), absolute, among)
        return _largest(values.abs() if absolute else values, count, among)

    def largest_of_both(self, values: Tensor, counts: tuple[int, int], among: Tensor, absolute: bool = False) -> Tensor:
        """Which are the counts[0] largest of those in `among`, or the counts[1] largest of the others, row by row.

        counts: each 0 to as many as there are. All else as in `largest`.
        """
        if values.numel() and (loops := kernels.on_accelerator(values, among)):
            return cast(Tensor, loops.largest_of_both(values, counts, absolute, among))
        values = _ordered(values)
        if kernels.suit(values, among) and values.numel():
            return kernels.largest_of_both(values, counts, self._fitting(values, 2), absolute, among)
        values = values.abs() if absolute else values
        first, second = (
            _largest(values, count, group).logical_and_(group)
            for count, group in zip(counts, (among, ~among), strict=True)
        )
        return first.logical_or_(second)

    def _fitting(self, values: Tensor, groups: int) -> Tensor:
        """The hints of last time where they are of such values, else new ones, which say nothing."""
        shape = groups * len(values), kernels.HINT
        if self._hints is None or self._hints.shape != shape:
            self._hints = torch.full(shape, torch.nan, dtype=torch.float32, device=values.device)
        return self._hints


def largest(values: Tensor, count: int | Tensor, absolute: bool = False, among: Tensor | None = None) -> Tensor:
    """`Selection.largest` of a selection that is made once."""
    return Selection().largest(values, count, absolute, among)


def count_kept(mask: Tensor) -> Tensor:
    """How many are True in each row: int64 [R] of bool [R, D]."""
    return kernels.count(mask) if kernels.suit(mask) else mask.sum(1)


def _ordered(values: Tensor) -> Tensor:
    """The values in float32 or float64: exact, and order-preserving, for all narrower float types."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _largest(values: Tensor, count: int | Tensor, among: Tensor | None) -> Tensor:
    """`Selection.largest` in torch, on any device."""
    rows, size = values.shape
    if isinstance(count, int) and among is None and not 0 < count < size:
        return torch.full_like(values, count > 0, dtype=torch.bool)
    if values.numel() == 0:
        return torch.zeros_like(values, dtype=torch.bool)
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


def _lowest_chosen(values: Tensor, count: int | Tensor) -> Tensor:
    """The `count`-th largest value of each row: [R, 1]; of a row with none to choose, any value."""
    size = values.shape[1]
    if isinstance(count, int):
        rank = min(size - count, size - 1)
        if host_reads_free(values):  # several times faster there
            return values.kthvalue(rank + 1, dim=1, keepdim=True).values
        return values.sort(dim=1).values[:, rank : rank + 1]
    return values.sort(dim=1).values.gather(1, (size - count).clamp(max=size - 1).unsqueeze(1))

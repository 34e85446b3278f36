"""Selection among values that stay the same, without the compiled loops: ranked once, a step only counts."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from . import kernels
from .filters import filters
from .kernels import BLOCK, Array, count_rows


class Ranks:
    """The filters of a weight in order, and where the last cut of each was.

    The members of what was chosen last are counted; the next cut is as many members further up or down as that is too
    few or too many, most often not far. No value is looked at.

    weight: float32 [F, ...] without NaN, in the host's memory; it is put in order when first asked for.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._last: tuple[Array, Array] | None = None  # what was chosen, and how many of each filter

    @cached_property
    def _order(self) -> Array:
        """The places in each filter by falling rank, in as few bytes as they need: [F, D]."""
        values = filters(self._weight).detach().numpy()
        rows, size = values.shape
        order: Array = np.empty((rows, size), np.min_scalar_type(max(size - 1, 0)))
        for part in _parts(np.arange(rows), size):
            order[part] = np.argsort(values[part], axis=1, kind="stable")[:, ::-1]
        return order

    def largest(self, counts: Array, among: Array) -> Array:
        """`selection.largest` of the filters. counts: int64 [F], at most as many as members; among: bool [F, D]."""
        rows, size = among.shape
        if 0 < among.size <= kernels.FEW:
            return self._largest_of_few(counts, among)
        last = self._last  # taken once: another thread may be at it
        chosen, ends = (last[0].copy(), last[1].copy()) if last else (np.zeros(among.shape, bool), np.zeros(rows, int))
        members = count_rows(among & chosen)
        chosen[counts == 0], ends[counts == 0] = False, 0
        pending = np.flatnonzero(counts > 0)
        for width in (min(size, max(64, size // 32)), min(size, max(256, size // 4)), size):
            missed = [
                self._look_near(part, width, counts, members, among, chosen, ends) for part in _parts(pending, width)
            ]
            pending = np.concatenate(missed) if missed else pending
        self._last = chosen, ends
        return chosen.copy()

    def _largest_of_few(self, counts: Array, among: Array) -> Array:
        """The same in fewer calls: all members are counted along the order."""
        rows, size = among.shape
        places = self._order + size * np.arange(rows)[:, None]  # made anew: kept it would take 8 bytes a weight
        up_to = among.reshape(-1)[places].cumsum(axis=1, dtype=np.int32)
        in_order, chosen = np.empty_like(among), np.empty_like(among)
        in_order[:, 0] = counts > 0
        np.less(up_to[:, :-1], counts[:, None], out=in_order[:, 1:])
        chosen.reshape(-1)[places] = in_order
        return chosen

    def _look_near(
        self, rows: Array, width: int, counts: Array, members: Array, among: Array, chosen: Array, ends: Array
    ) -> Array:
        """Move the cuts of these rows as far as `width` ranks around the last ones tell; which rows are still to do."""
        size = among.shape[1]
        first = (ends[rows] - width // 2).clip(0, size - width)
        places = sliding_window_view(self._order, width, axis=1)[rows, first] + size * rows[:, None]
        near = np.arange(width)
        inside, before = among.reshape(-1)[places], near < (ends[rows] - first)[:, None]
        wanted = counts[rows] - members[rows] + count_rows(inside & before)
        up_to = inside.cumsum(axis=1, dtype=np.int32)
        found = (wanted > 0) & (wanted <= up_to[:, -1])
        higher = count_rows(up_to < wanted[:, None])
        after = near <= higher[:, None]
        changed = (before ^ after) & found[:, None]
        chosen.reshape(-1)[places[changed]] = after[changed]
        ends[rows[found]] = (first + higher + 1)[found]
        return rows[~found]


def _parts(rows: Array, width: int) -> list[Array]:
    """So many of the rows together that what is looked at stays in a cache."""
    return np.array_split(rows, max(1, min(len(rows), len(rows) * width // BLOCK))) if len(rows) else []

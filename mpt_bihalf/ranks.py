"""Selection among values that stay the same, without the compiled loops: ranked once, a step only counts."""

from __future__ import annotations

import numpy as np

from .kernels import BLOCK, Array, count_rows


class Ranks:
    """The rows of a matrix in order, and where the last cut of each was.

    The members of what was chosen last are counted; the next cut is as many members further up or down, most often not
    far. No value is looked at. A copy or a pickle begins anew.

    values: float32 [R, D] without NaN.
    """

    def __init__(self, values: Array) -> None:
        rows, size = values.shape
        self._values = values
        self._order: Array = np.empty((rows, size), np.min_scalar_type(max(size - 1, 0)))  # by falling rank
        for part in _parts(np.arange(rows), size):
            self._order[part] = np.argsort(values[part], axis=1, kind="stable")[:, ::-1]
        self._last: tuple[Array, Array] = np.zeros((rows, size), bool), np.zeros(rows, int)  # chosen, how many

    def largest(self, counts: Array, among: Array) -> Array:
        """`kernels.largest` of these values. counts: int64 [R], at most as many as members; among: bool [R, D]."""
        size = among.shape[1]
        chosen, ends = self._last[0].copy(), self._last[1].copy()
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

    def _look_near(
        self, rows: Array, width: int, counts: Array, members: Array, among: Array, chosen: Array, ends: Array
    ) -> Array:
        """Move the cuts of these rows as far as `width` ranks around the last ones tell; which rows are still to do."""
        size = among.shape[1]
        first = (ends[rows] - width // 2).clip(0, size - width)
        ranks = first[:, None] + np.arange(width)
        offset = size * rows[:, None]
        places = self._order.reshape(-1)[ranks + offset] + offset
        inside = among.reshape(-1)[places]
        ahead = members[rows] - count_rows(inside & (ranks < ends[rows, None]))
        up_to = inside.cumsum(axis=1, dtype=np.int32)
        wanted = counts[rows] - ahead
        found = (wanted > 0) & (wanted <= up_to[:, -1])
        higher = (up_to < wanted[:, None]).sum(axis=1)
        chosen.reshape(-1)[places[found]] = (np.arange(width) <= higher[:, None])[found]
        ends[rows[found]] = (first + higher + 1)[found]
        return rows[~found]

    def __reduce__(self) -> tuple[type[Ranks], tuple[Array]]:
        return Ranks, (self._values,)


def _parts(rows: Array, width: int) -> list[Array]:
    """So many of the rows together that what is looked at stays in a cache."""
    return np.array_split(rows, max(1, min(len(rows), len(rows) * width // BLOCK))) if len(rows) else []

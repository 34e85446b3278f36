"""Values that were only moved: which channels, rows and columns of which others they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Moved:
    """Numbers that were only moved: int64 [1, ...], the place of each among all values', or -1 for a zero."""

    places: Tensor


@dataclass(frozen=True)
class Taken:
    """Channel c is channel `channels[c]` of value `values[c]`, zeros where that is -1: of it these rows and columns."""

    values: np.ndarray
    channels: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def whole_value(places: np.ndarray, starts: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> int | None:
    """The index of the value whose numbers these are, all in their order; None where they are not those of one.

    places: int64 of any shape. starts: the place of the first number of each value, rising.
    """
    number = int(np.searchsorted(starts, max(int(places.flat[0]), 0), side="right")) - 1
    count = prod(shapes[number])
    same = places.size == count and np.array_equal(places.reshape(-1), starts[number] + np.arange(count))
    return number if same else None


def taken(places: np.ndarray, starts: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> Taken | None:
    """What channels [C, H, W] are taken from; None where pixels were moved among each other.

    Of all channels the same rows and columns, each so many apart, of values of one height and width.
    """
    first = places[:, 0, 0]
    filled = first >= 0
    if not filled.any():
        return None
    values = np.searchsorted(starts, first, side="right") - 1
    sizes = {shapes[int(number)][1:] for number in values[filled]}
    if len(sizes) > 1:
        return None
    ((height, width),) = sizes
    channels, inside = np.divmod(first - np.asarray(starts)[values], height * width)
    top, left = divmod(int(inside[filled][0]), width)
    some = places[filled][0]
    down = int(some[1, 0] - some[0, 0]) // width if len(some) > 1 else 1
    right = int(some[0, 1] - some[0, 0]) if some.shape[1] > 1 else 1
    rows, columns = top + np.arange(len(some)) * down, left + np.arange(some.shape[1]) * right
    if min(down, right) < 1 or rows[-1] >= height or columns[-1] >= width:
        return None
    found = Taken(np.where(filled, values, -1), np.where(filled, channels, -1), rows, columns)
    origins = np.asarray(starts)[values] + channels * height * width
    expected = origins[:, None, None] + rows[:, None] * width + columns
    return found if (places == np.where(filled[:, None, None], expected, -1)).all() else None

"""Every binary network of 2 inputs, 3 hidden units and 1 output, and the decision boundaries they draw (Fig. 6).

The network is sigmoid(v . sigmoid(W x + b)) with W [3, 2], b [3] and v [3], each of the 12 weights +1 or -1. Its class
at a point x of the input plane is the rounded output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np
from numpy.typing import NDArray

from .counts import Number, as_fraction

WEIGHTS = 12
EQUAL = WEIGHTS // 2  # as many -1s as +1s
CONSTANT = -1  # the boundary of a network with one class everywhere

# Of one hidden unit: its weights from the first input, the second input and the bias, and its weight to the output.
UNITS = tuple(product((1, -1), repeat=4))

MAX_POINTS_A_SIDE = 2_000
# The smallest sigmoid is about exp(-2 extent - 1), which a float64 sum with one near 1 must still tell from 0.
MAX_EXTENT = 16


@dataclass(frozen=True)
class SearchSpace:
    """The 4,096 combinations of weights and the distinct boundaries they draw on a grid of n x n points."""

    axis: NDArray[np.float64]
    """[n], the coordinates of the grid's points along either input."""
    weights: NDArray[np.int8]
    """[4096, 3, 4], +1 or -1: of each combination the hidden units, each in the order of `UNITS`."""
    boundary: NDArray[np.int64]
    """[4096]: of each combination the number of its boundary, from 0 in order of appearance, or `CONSTANT`."""

    @property
    def boundaries(self) -> int:
        """How many distinct boundaries there are. A function and its complement have the same one."""
        return int(self.boundary.max()) + 1

    @property
    def negatives(self) -> NDArray[np.int64]:
        """[4096], 0 to 12: the number of -1s in each combination."""
        return (self.weights < 0).sum((1, 2))

    @property
    def combinations(self) -> NDArray[np.int64]:
        """[13]: how many combinations have 0, 1, ... 12 -1s."""
        return np.bincount(self.negatives, minlength=WEIGHTS + 1)

    @property
    def reached(self) -> NDArray[np.bool_]:
        """[13, boundaries]: whether some combination with so many -1s draws the boundary."""
        reached = np.zeros((WEIGHTS + 1, self.boundaries), bool)
        drawn = self.boundary != CONSTANT
        reached[self.negatives[drawn], self.boundary[drawn]] = True
        return reached

    def margin(self, boundary: int) -> NDArray[np.float64]:
        """[n (second input), n (first input)]: above 0 on one side of a boundary, below 0 on the other.

        It is the sum whose sigmoid is the output, of the first combination that draws the boundary.
        """
        a, b, c = (_signal(unit, self.axis) for unit in self.weights[np.argmax(self.boundary == boundary)])
        return a + b + c


def enumerate_search_space(step: Number = 0.04, extent: Number = 5) -> SearchSpace:
    """Evaluate all 4,096 networks on the grid [-extent, extent) x [-extent, extent) and tell their boundaries apart.

    Raises ValueError, naming the value, for what `grid_axis` refuses.
    """
    axis = grid_axis(step, extent)
    signals = [_signal(unit, axis) for unit in UNITS]

    boundary = np.full(len(UNITS) ** 3, CONSTANT)
    numbers: dict[bytes, int] = {}
    for combination, (a, b, c) in enumerate(product(signals, repeat=3)):
        classes = a + b + c > 0  # where the output, the sigmoid of this sum, rounds to 1
        classes ^= classes[0, 0]  # the same for a function and its complement
        if classes.any():
            boundary[combination] = numbers.setdefault(np.packbits(classes).tobytes(), len(numbers))
    return SearchSpace(axis, binary_weights(), boundary)


def binary_weights() -> NDArray[np.int8]:
    """[4096, 3, 4]: all combinations of three hidden units, the last running fastest."""
    return np.array(list(product(UNITS, repeat=3)), np.int8)


def grid_axis(step: Number, extent: Number) -> NDArray[np.float64]:
    """The points -extent, -extent + step, ... below extent: [n], n >= 2, counted from the decimals as written.

    Raises ValueError where either is no finite number, the step is not above 0, the extent not in (0, 16], or the grid
    would have a single point or more than 4 million.
    """
    width, half = as_fraction(step, "step"), as_fraction(extent, "extent")
    if width <= 0:
        raise ValueError(f"step must be above 0, not {step}")
    if not 0 < half <= MAX_EXTENT:
        raise ValueError(f"extent must lie in (0, {MAX_EXTENT}], beyond which float64 is too coarse, not {extent}")
    count = ceil(2 * half / width)
    if count < 2:
        raise ValueError(f"step must be below {float(2 * half)}, the width of the grid, not {step}")
    if count > MAX_POINTS_A_SIDE:
        finest = float(2 * half / MAX_POINTS_A_SIDE)
        raise ValueError(
            f"step {step} makes a grid of more than {MAX_POINTS_A_SIDE**2:,} points: at extent {extent} take {finest} "
            "or more"
        )
    return np.array([float(place * width - half) for place in range(count)])


def _signal(unit: Iterable[int], axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n (second input), n (first input)]: what a hidden unit adds to the sum at the output."""
    from_first, from_second, bias, to_output = unit
    return to_output / (1 + np.exp(-(from_first * axis + from_second * axis[:, None] + bias)))

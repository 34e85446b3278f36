"""Every binary network of 2 inputs, 3 hidden units and 1 output, and the decision boundaries they draw (Fig. 6).

The network is sigmoid(v . sigmoid(W x + b)) with W [3, 2], b [3] and v [3], each of the 12 weights +1 or -1. Its class
at a point x of the input plane is the rounded output.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..counts import Number, as_fraction
from ..endings import run_command
from ..report.figures import COLOURS
from ..report.outcome import Curves, Outcome
from .experiment import Experiment
from .results import Results

WEIGHTS = 12
EQUAL = WEIGHTS // 2  # as many -1s as +1s
CONSTANT = -1  # the boundary of a network with one class everywhere

# Of one hidden unit: its weights from the first input, the second input and the bias, and its weight to the output.
UNITS = tuple(product((1, -1), repeat=4))

MAX_POINTS_A_SIDE = 2_000
# The smallest sigmoid is about exp(-2 extent - 1), which a float64 sum with one near 1 must still tell from 0.
MAX_EXTENT = 16

EQUAL_COLOUR, OTHER_COLOUR = COLOURS[:2]
COMBINATIONS_COLOUR = "0.45"
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "fontsize": "small", "frameon": False}


@dataclass(frozen=True, kw_only=True)
class Enumeration(Experiment):
    """The grid that tells decision boundaries apart."""

    name = "search_space"
    about = "Enumerate all 4,096 binary weights of a 2-3-1 network and count the decision boundaries."
    claim = (
        "4,096 combinations give 76 distinct decision boundaries, the 924 bi-half ones 66: "
        "the search space shrinks to under a quarter and most solutions stay"
    )

    step: float = 0.04
    """distance between neighbouring points of the grid; at most 4 million points"""
    extent: float = 5.0
    """the grid covers [-extent, extent) along both inputs; at most 16"""
    out: str = "runs/search_space"
    """folder for the table, the figure and the curves"""

    def outcome(self, results: Results) -> Outcome:
        space = enumerate_search_space(self.step, self.extent)
        rows = rows_of(space)
        curves: Curves = {
            name: [(row["negatives"], row[name]) for row in rows] for name in ("combinations", "boundaries")
        }
        return Outcome(rows=rows, figure=draw(space), curves=curves, finding=finding_of(space))


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


def rows_of(space: SearchSpace) -> list[dict[str, Any]]:
    """A row for each number of -1s: combinations, distinct boundaries, and those with that many -1s or fewer."""
    reached = space.reached
    so_far = np.logical_or.accumulate(reached)
    return [
        {
            "negatives": negatives,
            "combinations": int(combinations),
            "boundaries": int(reached[negatives].sum()),
            "boundaries_so_far": int(so_far[negatives].sum()),
        }
        for negatives, combinations in enumerate(space.combinations)
    ]


def finding_of(space: SearchSpace) -> str:
    """One line: what share of the boundaries equal bits keep, for what share of the combinations, and their rank."""
    total = space.boundaries
    if total == 0:
        return "no combination of weights draws a decision boundary on this grid"
    combinations, boundaries = space.combinations, space.reached.sum(1)
    kept, tried = int(boundaries[EQUAL]), int(combinations[EQUAL])
    part = "most of them" if 2 * kept > total else "no more than half"
    return (
        f"equal bits keep {kept} of {total} distinct decision boundaries ({100 * kept / total:.0f} %), {part}, with "
        f"{tried:,} of {combinations.sum():,} combinations ({100 * tried / combinations.sum():.0f} %); "
        f"{_rank(boundaries)}"
    )


def draw(space: SearchSpace) -> Figure:
    """Left: shares of combinations and boundaries against the number of -1s. Right: every boundary in the plane."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.05, 1))
    _draw_counts(left, space)
    _draw_boundaries(right, space)
    return figure


def _rank(boundaries: np.ndarray) -> str:
    """Where equal bits stand among all numbers of -1s. boundaries: [13]."""
    most = np.flatnonzero(boundaries == boundaries.max())
    others = " or ".join(str(negatives) for negatives in most if negatives != EQUAL)
    if EQUAL not in most:
        return f"the most, {boundaries.max()}, come with {others} -1s"
    return f"{others} -1s keep as many" if others else "no other number of -1s keeps as many"


def _draw_counts(panel: Axes, space: SearchSpace) -> None:
    curves = (
        ("distinct boundaries", space.reached.sum(1), space.boundaries, EQUAL_COLOUR, "o", 1),
        ("combinations of weights", space.combinations, len(space.weights), COMBINATIONS_COLOUR, "s", -1),
    )
    for name, counts, whole, colour, marker, up in curves:
        shares = 100 * counts / max(whole, 1)
        panel.plot(shares, color=colour, marker=marker, markersize=5, label=f"{name} (of {whole:,})")
        for negatives, (count, share) in enumerate(zip(counts, shares, strict=True)):
            aside = 9 * up * np.sign(negatives - EQUAL)  # off the slope
            panel.annotate(
                f"{count:,}",
                (negatives, share),
                (aside, 9 * up),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize="small",
                color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
    panel.axvline(EQUAL, color="0.8", linestyle="--", zorder=0, label="equal bits")
    panel.set(xlabel="number of -1s among the 12 weights", ylabel="share of all (%)", ylim=(-8, 102))
    panel.set(title="What each number of -1s reaches", xticks=range(len(space.combinations)))
    panel.grid(alpha=0.3)
    panel.legend(**BELOW, ncols=3)


def _draw_boundaries(panel: Axes, space: SearchSpace) -> None:
    equal = space.reached[EQUAL]
    groups = (
        ("with equal bits", equal, EQUAL_COLOUR, 0.8),
        ("only with unequal bits", ~equal, OTHER_COLOUR, 1.6),
    )
    axis = np.linspace(space.axis[0], space.axis[-1], 250)  # smooth lines, however coarse the grid
    drawn = replace(space, axis=axis)
    for name, chosen, colour, width in groups:
        for boundary in np.flatnonzero(chosen):
            panel.contour(axis, axis, drawn.margin(int(boundary)), levels=[0], colors=colour, linewidths=width)
        panel.plot([], [], color=colour, linewidth=width, label=f"{name}: {chosen.sum()}")
    panel.set(xlabel="first input", ylabel="second input", aspect="equal")
    panel.set(xlim=axis[[0, -1]], ylim=axis[[0, -1]], title="The distinct decision boundaries")
    panel.legend(**BELOW, ncols=2)


if __name__ == "__main__":
    run_command(Enumeration.main)

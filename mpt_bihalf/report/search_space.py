"""Table, figure and finding of the search space of a small binary network (Fig. 6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..search_space import EQUAL, SearchSpace
from .figures import COLOURS

CLAIM = (
    "4,096 combinations give 76 distinct decision boundaries, the 924 bi-half ones 66: "
    "the search space shrinks to under a quarter and most solutions stay"
)

EQUAL_COLOUR, OTHER_COLOUR = COLOURS[:2]
COMBINATIONS_COLOUR = "0.45"
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "fontsize": "small", "frameon": False}


def search_space_rows(space: SearchSpace) -> list[dict[str, Any]]:
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


def search_space_finding(space: SearchSpace) -> str:
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


def draw_search_space(space: SearchSpace) -> Figure:
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

"""Figures of a sweep."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import write_whole
from ..methods import METHODS
from .tables import split_settings, summarise_trials

# Okabe and Ito's palette and two more: told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#882255", "#999999")
MARKERS = "osD^vP*X<>"
# What compares the ways to binarize all weights has them in these, whatever stands beside them.
OWN_COLOUR = {"bihalf": COLOURS[0], "sign": COLOURS[1], "irnet": COLOURS[2]}
ORDER = (
    "mpt-sign",
    "mpt-bihalf",
    "mpt-balanced",
    "magnitude-sign",
    "magnitude-bihalf",
    "sign",
    "bihalf",
    "dense",
    "irnet",
    "bop",
)


def draw_sweep(records: list[dict[str, Any]]) -> Figure:
    """Test top-1 against the percentage of pruned weights, a panel for each network and setting (Fig. 8).

    Error bars are standard deviations over the trials; methods without a mask are horizontal lines in a shaded band.
    """
    parts = split_settings(summarise_trials(records))
    columns = min(len(parts), 3)
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(4.8 * columns + 0.4, 3.6 * rows + 0.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (title, part) in zip(panels, parts, strict=False):
        for method, curve in part.groupby("method", sort=False):
            place = list(dict.fromkeys([*ORDER, *part["method"]])).index(method) % len(COLOURS)
            colour = COLOURS[place]
            if METHODS[method].mask is None:
                setting = curve.iloc[0]
                panel.axhline(setting["mean"], color=colour, linestyle="--", label=f"{method} (unpruned)")
                if setting["finished"] > 1:
                    low, high = setting["mean"] - setting["std"], setting["mean"] + setting["std"]
                    panel.axhspan(low, high, color=colour, alpha=0.15, linewidth=0)
            else:
                points = curve.sort_values("prune_rate")
                panel.errorbar(
                    100 * points["prune_rate"],
                    points["mean"],
                    points["std"].fillna(0),
                    color=colour,
                    marker=MARKERS[place],
                    markersize=5,
                    capsize=3,
                    label=method,
                )
        panel.set(title=title, xlabel="weights pruned (%)", ylabel="test top-1 accuracy (%)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    for panel in panels[len(parts) :]:
        panel.remove()
    trials = int(max(part["trials"].max() for _, part in parts))
    figure.supxlabel(
        f"mean and standard deviation of {trials} trial{'s' * (trials > 1)}", fontsize="small", color="0.4"
    )
    return figure


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method: bihalf, sign and irnet have the same in every figure, the others what is left."""
    left = cycle(COLOURS[len(OWN_COLOUR) :])
    return {method: OWN_COLOUR.get(method) or next(left) for method in dict.fromkeys(methods)}


def draw_mean(panel: Axes, trials: pd.DataFrame, x: str, y: str, **style: Any) -> None:
    """Column `y` against column `x`: a line of the means over the trials in a band from the lowest to the highest."""
    points = trials.groupby(x)[y].agg(["mean", "min", "max"])
    (line,) = panel.plot(points.index, points["mean"], **style)
    panel.fill_between(points.index, points["min"], points["max"], color=line.get_color(), alpha=0.15, linewidth=0)


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write the figure as PNG and PDF at `path` with these endings; returns both paths."""
    written = []
    endings: tuple[tuple[str, Any], ...] = ((".png", {"dpi": 150}), (".pdf", {"metadata": {"CreationDate": None}}))
    for ending, options in endings:
        target = path.with_suffix(ending)
        write_whole(target, partial(figure.savefig, format=ending[1:], **options))
        written.append(target)
    return written

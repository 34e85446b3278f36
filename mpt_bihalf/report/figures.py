"""Figures of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..endings import one_line
from ..files import write_whole
from .tables import (
    PRUNING,
    UNUSED,
    View,
    figure_name,
    of_trials,
    row_label,
    split_settings,
    summarise_trials,
    unit_of,
    unused,
)

__all__ = ["draw_mean", "draw_sweep", "save_figure"]

# Okabe and Ito's palette, told apart by readers with any colour vision, and further ones for sweeps of many methods.
COLOURS: tuple[str, ...] = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#882255",
    "#999999",
    "#F0E442",
    "#44AA99",
    "#332288",
    "#AA4499",
    "#661100",
    "#117733",
    "#6699CC",
    "#DDCC77",
    "#88CCEE",
    "#AA4466",
    "#555555",
)
MARKERS = "osD^vP*X<>hdp8HsD^vP"
FOOTNOTE: dict[str, Any] = {"fontsize": "small", "color": "0.4"}  # what is written below a figure
# Where values stand side by side: how much of the way to the next they take up.
ROOM = 0.6
MOST_PANELS = 24
LOGARITHMIC = ("lr", "weight_decay", "bop_gamma", "bop_tau", "batch_size")
# What compares the ways to binarize all weights has them in these, whatever stands beside them.
OWN_COLOUR = {"bihalf": COLOURS[0], "sign": COLOURS[1], "irnet": COLOURS[2]}
ORDER: tuple[str, ...] = ("mpt-sign", "mpt-bihalf", "mpt-balanced", "magnitude-sign", "magnitude-bihalf")
ORDER += ("sign", "bihalf", "dense", "irnet", "bop")


def draw_sweep(records: list[dict[str, Any]] | pd.DataFrame, view: View = PRUNING, note: str = "") -> Figure:
    """The view's figure against its field x, a panel for each network and setting; by default test top-1 against the
    percentage of pruned weights (Fig. 8).

    Error bars are standard deviations over the trials; methods that do not look at x, as those without a mask at the
    fraction pruned, are horizontal lines in a shaded band. Where x is no number, its values stand side by side.
    `note` is written below. Of more than `MOST_PANELS` panels the first are drawn, and the figure says so.
    """
    summary = summarise_trials(records, view)
    every = split_settings(summary, view)
    parts = every[:MOST_PANELS]
    columns = 2 if len(parts) == 4 else min(len(parts), 3)
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(4.8 * columns + 0.4, 3.6 * rows + 0.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (title, part) in zip(panels, parts, strict=False):
        draw_part(panel, part, view)
        panel.set(title=title, xlabel=_x_label(view.x), ylabel=_y_label(view.figure))
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0] and view.columns:
            panel.legend(fontsize="small", title=None if view.columns == "method" else view.columns)
    for panel in panels[len(parts) :]:
        panel.remove()
    notes = [of_trials(int(summary["trials"].max())), note]
    if len(every) > len(parts):
        notes.append(f"the first {len(parts)} of {len(every)} panels")
    figure.supxlabel("; ".join(filter(None, notes)), **FOOTNOTE)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a data folder's name may hold dollars
    return figure


def draw_spread(panel: Axes, at: Any, points: pd.DataFrame, **style: Any) -> None:
    """Means with their standard deviations, `mean` and `std` of the points, at these places."""
    panel.errorbar(at, points["mean"], points["std"].fillna(0), **{"markersize": 5, "capsize": 3, **style})


def draw_part(panel: Axes, part: pd.DataFrame, view: View) -> None:
    """One panel: a curve for each value of the view's columns."""
    numeric = pd.api.types.is_numeric_dtype(part[view.x]) and not pd.api.types.is_bool_dtype(part[view.x])
    places = list(dict.fromkeys(part[view.x]))
    aside = unused(part, view.x)
    curves = list(part.groupby(view.columns, sort=False, dropna=False)) if view.columns else [("", part)]
    looks = _places([value for value, _ in curves], ORDER if view.columns == "method" else ())
    for number, (name, curve) in enumerate(curves):
        place = looks[name]
        colour = COLOURS[place]
        if aside[curve.index].all():
            setting = curve.iloc[0]
            panel.axhline(
                setting["mean"], color=colour, linestyle="--", label=f"{one_line(name)} ({UNUSED[view.x][0]})"
            )
            if setting["finished"] > 1:
                low, high = setting["mean"] - setting["std"], setting["mean"] + setting["std"]
                panel.axhspan(low, high, color=colour, alpha=0.15, linewidth=0)
            continue
        points = curve.sort_values(view.x) if numeric else curve
        at = points[view.x] * (100 if view.x == "prune_rate" else 1)
        if not numeric:
            apart = ROOM / len(curves) * (number - (len(curves) - 1) / 2)
            at = points[view.x].map(places.index) + apart
        style = {"color": colour, "marker": MARKERS[place], "linestyle": "-" if numeric else ""}
        draw_spread(panel, at, points, label=one_line(name), **style)
    if not numeric:
        panel.set_xticks(range(len(places)), [one_line(row_label(view.x, value), 40) for value in places])
        panel.set_xlim(-0.5, len(places) - 0.5)
        if sum(len(row_label(view.x, value)) for value in places) > 40:
            panel.tick_params(axis="x", rotation=30)
    elif view.x in LOGARITHMIC and min(places) > 0 and max(places) >= 10 * min(places):
        panel.set_xscale("log")
        panel.set_xticks(places, [f"{value:g}" for value in places])
        panel.minorticks_off()


def _x_label(x: str) -> str:
    return "weights pruned (%)" if x == "prune_rate" else x.replace("_", " ")


def _places(values: Sequence[Any], known: Sequence[Any]) -> dict[Any, int]:
    """The place in COLOURS and MARKERS of each value: a known one has its own, the others have what is left."""
    places = {value: known.index(value) for value in values if value in known}
    left = [place for place in range(len(COLOURS)) if place not in places.values()]
    others = (value for value in values if value not in known)
    return places | dict(zip(others, cycle(left or range(len(COLOURS))), strict=False))


def _y_label(figure: str) -> str:
    return f"{figure_name(figure)} accuracy (%)" if unit_of(figure) else figure_name(figure)


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
    """Write the figure as PNG and PDF at `path` with these endings, laid out once for both; returns both paths."""
    written = []
    endings: tuple[tuple[str, Any], ...] = ((".png", {"dpi": 150}), (".pdf", {"metadata": {"CreationDate": None}}))
    for ending, options in endings:
        target = path.with_suffix(ending)
        write_whole(target, partial(figure.savefig, format=ending[1:], **options))
        figure.set_layout_engine("none")
        written.append(target)
    return written

"""What tables, figures and findings of traced trainings have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..data import short_data
from .outcome import Curves
from .statistics import SIGNIFICANT, TOP1, compare, diverged_texts, p_text, reference_of

PLACE = ["model", "data"]
SETTING = [*PLACE, "method"]
RUN = [*SETTING, "seed"]
STEP = "training step"

Row = dict[str, Any]


def finished_traces(
    records: list[Row], trace: pd.DataFrame, columns: list[str], run: Sequence[str] = RUN
) -> pd.DataFrame:
    """The rows of a trace, as `read_trace` has it, that belong to the finished ones of these runs: `run`, `columns`.

    run: the columns that tell runs apart.
    """
    finished = [record for record in records if pd.notna(record.get(TOP1))]
    if not finished or trace.empty:
        return pd.DataFrame(columns=[*run, *columns], dtype=float)  # of nothing there are sums, of no objects none
    return trace.merge(pd.DataFrame(finished)[[*run]], on=[*run])[[*run, *columns]]


def summarise_runs(
    records: list[Row],
    steps: pd.DataFrame,
    summary: Callable[[pd.DataFrame], Row],
    columns: list[str],
    run: Sequence[str] = RUN,
) -> pd.DataFrame:
    """A row for each run: `run`, and the `columns` that `summary` finds in its steps; NaN for a run that diverged.

    run: the columns that tell runs apart.
    """
    found = [dict(zip(run, one, strict=True)) | summary(part) for one, part in steps.groupby([*run], sort=False)]
    return pd.DataFrame(records)[[*run]].merge(pd.DataFrame(found, columns=[*run, *columns]), how="left", on=[*run])


def compare_methods(runs: pd.DataFrame, figure: str, further: Callable[[pd.DataFrame], Row]) -> list[Row]:
    """A row for each network, data set and method.

    Columns: `SETTING`, trials (finished ones), diverged, the mean of `figure` under its name, its `_std`, what is
    `further` found in the method's runs, and difference and p of the figure (`paired`) against bihalf, or without it
    the first method.
    """
    rows = []
    for row in compare(runs, reference_of(runs, "bihalf"), figure=figure).to_dict("records"):
        own = runs[(runs[SETTING] == [row[name] for name in SETTING]).all(axis=1)]
        rows.append(
            {name: row[name] for name in (*SETTING, "trials", "diverged")}
            | {figure: row["mean"], f"{figure}_std": row["std"]}
            | further(own)
            | {name: row[name] for name in ("difference", "p")}
        )
    return rows


def mean_curves(steps: pd.DataFrame, figures: Sequence[str]) -> Curves:
    """Means over the trials by step, for TensorBoard; a tag is figure/network-data-method."""
    return {
        f"{figure}/{model}-{short_data(data)}-{method}": list(trials.groupby("step")[figure].mean().items())
        for (model, data, method), trials in steps.groupby(SETTING, sort=False)
        for figure in figures
    }


def tell_places(rows: list[Row], tell: Callable[[list[Row]], str]) -> str:
    """One line: for each network and data set what `tell` says of the rows with finished trials, and what limits it."""
    told = []
    for model, data in dict.fromkeys((row["model"], row["data"]) for row in rows):
        here = [row for row in rows if (row["model"], row["data"]) == (model, data)]
        finished = [row for row in here if row["trials"]]
        parts = [tell(finished) if finished else "no run finished"]
        if finished and max(row["trials"] for row in finished) < 2:
            parts.append("one trial is too little to tell this from chance")
        parts += diverged_texts(pd.DataFrame(here))
        told.append(f"{model} on {short_data(data)}: {'; '.join(parts)}")
    return "; ".join(told)


def tell_differences(rows: list[Row], figure: str, digits: int) -> str:
    """Each method's `figure`, the highest first, and how far it is from the reference's, with p where there is one."""
    reference = next((row["method"] for row in rows if pd.isna(row["difference"])), None)
    told = []
    for row in sorted(rows, key=lambda row: -row[figure]):
        told.append(f"{row['method']} {row[figure]:,.{digits}f}")
        if pd.notna(row["difference"]):
            test = f", {p_text(row['p'])}" if pd.notna(row["p"]) else ""
            chance = ", not told apart" if row["p"] >= SIGNIFICANT else ""
            change = f"{abs(row['difference']):,.{digits}f} {'less' if row['difference'] < 0 else 'more'} than"
            told[-1] += f" ({change if round(row['difference'], digits) else 'as'} {reference}{test}{chance})"
    return ", ".join(told)


def draw_places(steps: pd.DataFrame, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A figure with a row of panels for each network and data set: (steps there, panels, the two names).

    Width of the figure and height of a row in inches. Without any step the figure says so.
    """
    groups = list(steps.groupby(PLACE, sort=False))
    figure = Figure(figsize=(width, height * max(len(groups), 1)), layout="constrained")
    if not groups:
        figure.text(0.5, 0.5, "no run finished", ha="center")
        return figure, []
    panels = figure.subplots(len(groups), columns, squeeze=False)
    return figure, [
        (part, row, f"{model}, {short_data(data)}") for ((model, data), part), row in zip(groups, panels, strict=True)
    ]

"""What an experiment leaves: a table, a figure, curves, and two lines that say what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from ..commandline import curves_command
from ..endings import show
from ..files import refuse_links, write_csv, write_text
from ..training.events import scalars, write_events
from .figures import save_figure

__all__ = ["Outcome"]

Rows = Sequence[dict[str, Any]]
Curves = dict[str, list[tuple[int, float]]]

# How the files end that hold our curves: TensorBoard reads all event files of a folder, among which may be a user's.
CURVES = ".outcome"
STYLES = {".txt": "simple", ".md": "github", ".tex": "latex_booktabs"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an experiment shows."""

    rows: Rows
    """of its table, which is also written as `name`.csv, .txt, .md and .tex"""
    figure: Figure
    """`name`.png and .pdf"""
    curves: Curves | None
    """(step, value) by tag, for TensorBoard; None: none of its own"""
    finding: str
    """one line that the records say"""
    note: str = ""
    """one line on how to read the table; empty: none"""
    steps: pd.DataFrame | None = None
    """what the table sums up, for a CSV file of its own, whose name ends in _steps"""


def conclude(out: Path, name: str, outcome: Outcome, claim: str, runs: bool = True) -> None:
    """Write the outcome below `out` and print it.

    claim: one line that the paper says. runs: whether runs with curves of their own lie below `out`. ValueError where
    the folder of the curves is a link.
    """
    refuse_links(out / "curves", out)
    out.mkdir(parents=True, exist_ok=True)
    if outcome.steps is not None:
        write_csv(out / f"{name}_steps.csv", outcome.steps.to_dict("records"))
    table = write_table(out / name, outcome.rows)
    png, pdf = save_figure(outcome.figure, out / name)
    if outcome.curves is not None:
        write_curves(out / "curves", outcome.curves)
    note = f"note:     {outcome.note}\n" if outcome.note else ""
    show(f"\n{table}\n\n{sentences(outcome.finding, claim)}\n{note}")
    show(f"table:    {out / name}.csv, .txt, .md, .tex\nfigure:   {png}, {pdf}")
    if outcome.curves is not None:
        show(f"curves:   {curves_command(out if runs else out / 'curves')}")


def sentences(finding: str, claim: str) -> str:
    """What was measured, and beside it what the paper says."""
    return f"measured: {finding}\npaper:    {claim}"


def write_table(path: Path, rows: Rows) -> str:
    """Write the rows as `path`.csv, .txt, .md and .tex; returns them as text. NaN is written as what is missing."""
    rows = [{name: None if _is_nan(value) else value for name, value in row.items()} for row in rows]
    write_csv(path.with_name(path.name + ".csv"), rows)
    written = {
        ending: tabulate(rows, headers="keys", tablefmt=style, floatfmt=".4g", missingval="-")
        for ending, style in STYLES.items()
    }
    for ending, text in written.items():
        write_text(path.with_name(path.name + ending), text + "\n")
    return written[".txt"]


def write_curves(folder: Path, curves: Curves) -> None:
    """TensorBoard curves in the place of those written here before, as `write_events` does."""
    points = ((scalars({tag: value}), step) for tag, some in curves.items() for step, value in some)
    write_events(folder, points, CURVES)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and isnan(value)

"""What an experiment leaves: a table, a figure, curves, and two lines that say what they show."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

from ..commandline import curves_command
from ..endings import show
from ..files import refuse_links, write_csv, write_text
from ..training.events import NAME, EventFile, number_of, scalars
from .figures import save_figure

Rows = Sequence[dict[str, Any]]
Curves = dict[str, Sequence[tuple[int, float]]]

# How the files end that hold our curves: TensorBoard reads all event files of a folder, among which may be a user's.
CURVES = ".outcome"
STYLES = {".txt": "simple", ".md": "github", ".tex": "latex_booktabs"}


def conclude(
    out: Path, name: str, rows: Rows, figure: Figure, curves: Curves, finding: str, claim: str, runs: bool = True
) -> None:
    """Write the outcome below `out` and print it.

    rows: the table of the experiment, also as `name`.csv, .txt, .md and .tex. figure: `name`.png and .pdf. curves:
    (step, value) by tag, for TensorBoard. finding: one line that the records say; claim: one line that the paper says.
    runs: whether runs with curves of their own lie below `out`. ValueError where the folder of the curves is a link.
    """
    refuse_links(out / "curves", out)
    out.mkdir(parents=True, exist_ok=True)
    table = write_table(out / name, rows)
    png, pdf = save_figure(figure, out / name)
    write_curves(out / "curves", curves)
    show(f"\n{table}\n\nmeasured: {finding}\npaper:    {claim}\n")
    show(f"table:    {out / name}.csv, .txt, .md, .tex\nfigure:   {png}, {pdf}")
    show(f"curves:   {curves_command(out if runs else out / 'curves')}")


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
    """TensorBoard curves in the place of those written here before; what else is in the folder stays.

    Of several processes that do so at once the last one's curves stay.
    """
    events = EventFile(folder, 0, CURVES)
    try:
        for tag, points in curves.items():
            for step, value in points:
                events.add(scalars({tag: value}), step)
        events.flush()
    except BaseException:
        events.path.unlink(missing_ok=True)
        raise
    for other in folder.glob(f"{NAME}*{CURVES}"):
        if number_of(other) < number_of(events.path):
            other.unlink(missing_ok=True)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and isnan(value)

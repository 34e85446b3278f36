"""A sweep by layer: what is kept, how its signs are divided, and their entropy, at the end of the runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from ..sweep.records import read_layers
from ..training import Run
from .tables import View

# The figures of layers.csv that tell of a finished ticket.
FIGURES = ("kept", "positive_share", "entropy")


def layer_records(out: Path, runs: dict[str, Run], frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each layer of each of these finished runs: the run's fields, and the layer's figures in its last epoch.

    runs: by the names of their folders. ValueError where none has left figures of layers.
    """
    names = set(frame["run"])
    table = read_layers(out, [run for name, run in runs.items() if name in names])
    if table.empty:
        raise ValueError("layers: no finished run has binary layers whose figures are kept")
    last = table[table["epoch"] == table.groupby("run")["epoch"].transform("max")]
    last = last[["run", "layer", *FIGURES]]
    others = [name for name in frame if name not in FIGURES and name != "layer"]
    return frame[others].merge(last, on="run")


def layer_views(view: View) -> list[View]:
    """The views of such records: a row, or a place along the axis, for each layer."""
    columns = view.columns or ("method" if "method" in view.by else "")
    by = (*view.by, "layer")
    return [replace(view, figure=figure, x="layer", columns=columns, by=by) for figure in FIGURES]

"""Tables of a sweep: rows rates, columns methods, mean ± standard deviation over the trials."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from ..methods import METHODS
from ..training import Run

# Fields that a table has rows and columns for, that trials differ in, or that do not bear on the result.
PLACED = ("model", "data", "method", "prune_rate", "seed", "data_root")


def summarise_trials(records: list[dict[str, Any]]) -> pd.DataFrame:
    """A row for each setting: the fields of its runs but the seed, then `mean`, `std`, `finished` and `trials`.

    mean and std (of a sample) are of the last epoch's test top-1 in percent, over the `finished` of the `trials`; the
    others diverged. Settings stand in the order of the records.
    """
    names = [field.name for field in fields(Run) if field.name not in ("seed", "data_root")]
    frame = pd.DataFrame(records)
    if "test_top1" not in frame:
        frame["test_top1"] = float("nan")
    trials = frame.groupby(names, sort=False, dropna=False)["test_top1"]
    return trials.agg(mean="mean", std="std", finished="count", trials="size").reset_index()


def split_settings(summary: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The summary in titled parts that a table or a panel shows each: by network, data and whatever else was varied.

    A field was varied if one method has several values of it; methods differ by themselves in, say, their scale. A
    method with one value of a field that others vary (it does not look at it) stands in every part.
    """
    candidates = [name for name in summary.columns if name not in (*PLACED, "mean", "std", "finished", "trials")]
    parts = []
    for (model, data), block in summary.groupby(["model", "data"], sort=False):
        values = block.groupby("method", sort=False)[candidates].nunique(dropna=False)
        varied = [name for name in candidates if (values[name] > 1).any()]
        ignored = {name: block["method"].map(values[name] == 1) for name in varied}
        points = block[varied].drop_duplicates() if varied else pd.DataFrame(index=[0])
        for _, point in points.iterrows():
            chosen = pd.Series(True, index=block.index)
            for name in varied:
                chosen &= (block[name] == point[name]) | ignored[name]
            extra = [f"{name} {point[name]}" for name in varied]
            parts.append((", ".join([str(model), short_data(str(data)), *extra]), block[chosen]))
    return parts


def sweep_table(records: list[dict[str, Any]]) -> str:
    """The tables of a sweep as text: last-epoch test top-1 in percent, the best of each row marked with `*`.

    Methods without a mask stand in a row of their own, `unpruned`. Needs at least one record.
    """
    tables = []
    for title, part in split_settings(summarise_trials(records)):
        methods = list(dict.fromkeys(part["method"]))
        unpruned = part["method"].map(lambda name: METHODS[name].mask is None)
        rows = [("unpruned", part[unpruned])] if unpruned.any() else []
        rows += [(f"{100 * rate:g} %", rows_at) for rate, rows_at in part[~unpruned].groupby("prune_rate")]
        cells = [[label, *_cells(row, methods)] for label, row in rows]
        text = tabulate(cells, headers=["pruned", *methods], stralign="right", disable_numparse=True)
        tables.append(
            f"{title}: test top-1 in %, mean ± standard deviation of {int(part['trials'].max())} trials\n{text}"
        )
    return "\n\n".join(tables)


def _cells(row: pd.DataFrame, methods: list[str]) -> list[str]:
    best = row["mean"].max()
    found = row.set_index("method")
    cells = []
    for method in methods:
        if method not in found.index:
            cells.append("")
            continue
        setting = found.loc[method]
        spread = f" ± {setting['std']:.2f}" if setting["finished"] > 1 else ""
        figure = f"{setting['mean']:.2f}{spread}" if setting["finished"] else "diverged"
        lost = setting["trials"] - setting["finished"]
        note = f" ({lost} of {setting['trials']} diverged)" if lost and setting["finished"] else ""
        cells.append(f"{figure}{note} {'*' if setting['mean'] == best else ' '}")
    return cells


def short_data(data: str) -> str:
    """A data set's name as a title has it: of a folder its last part."""
    return Path(data).name if data.startswith("folder:") else data

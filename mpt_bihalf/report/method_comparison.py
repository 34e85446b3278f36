"""Table, figure and finding of networks x methods, beside the published figures (Table 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .figures import method_colours
from .published import published
from .statistics import SIGNIFICANT, TOP1, compare, diverged_texts, p_text, reference_of
from .tables import short_data

CLAIM = (
    "on CIFAR-10 bi-half is the most accurate of the three at every depth (Conv2/4/6/8: 79.25, 87.68, 89.92, 90.40 %), "
    "then IR-Net (78.32 to 90.06 %), then sign (77.86 to 89.17 %), each a mean of 5 trials"
)

# Our name of the data set that Table 2 is of.
PUBLISHED_DATA = {"cifar10": "CIFAR-10"}
# Networks are 1 apart; how far apart their methods stand at most, and how much room they have together.
WIDEST_STEP, ROOM = 0.2, 0.8


def method_comparison_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each network and method: its settings, test top-1 in percent over the trials, and the published one.

    frame: the records of runs. mean and std (of a sample) are of the last epoch; difference (in points), pairs and p
    (paired t test over equal seeds) are against `statistics.reference_of`. The published figures are there where data,
    network and method are those of the paper's Table 2.
    """
    settings = frame.groupby(["model", "data", "method"], sort=False)[["scale", "lr", "weight_decay"]].first()
    table = settings.merge(compare(frame, reference_of(frame)), on=["model", "data", "method"])
    known = {
        (row["dataset"], row["model"].lower(), row["method"]): (row["top1"], row["top1_std"])
        for row in published("Table 2").to_dict("records")
    }
    columns = ["model", "data", "method", "scale", "lr", "weight_decay", "trials", "diverged", "mean", "std"]
    rows = []
    for row in table.to_dict("records"):
        top1, std = known.get((PUBLISHED_DATA.get(row["data"]), row["model"], row["method"]), (np.nan, np.nan))
        tests = {name: row[name] for name in ("difference", "pairs", "p")}
        rows.append({name: row[name] for name in columns} | tests | {"published": top1, "published_std": std})
    return rows


def method_comparison_curves(frame: pd.DataFrame) -> dict[str, list[tuple[int, float]]]:
    """Test top-1 in percent of each network and method by seed."""
    return {
        f"{TOP1}/{model}/{method}": list(zip(block["seed"].tolist(), block[TOP1].tolist(), strict=True))
        for (model, method), block in _finished(frame).groupby(["model", "method"], sort=False)
    }


def _finished(frame: pd.DataFrame) -> pd.DataFrame:
    """The records that have a test accuracy."""
    return frame.reindex(columns=list(dict.fromkeys([*frame, TOP1]))).dropna(subset=[TOP1])


def method_comparison_finding(rows: list[dict[str, Any]]) -> str:
    """One line: the methods of each network from best to worst, and which differ significantly from the reference."""
    table = pd.DataFrame(rows)
    reference = reference_of(table)
    networks = table.groupby(["model", "data"], sort=False)
    return " | ".join(f"{model} on {short_data(data)}: {_told(block, reference)}" for (model, data), block in networks)


def _told(block: pd.DataFrame, reference: str) -> str:
    """What the rows of one network say."""
    ranked = block[block["trials"] > 0].sort_values("mean", ascending=False, kind="stable").to_dict("records")
    order = ""
    for row, above in zip(ranked, [None, *ranked], strict=False):
        sign = "" if above is None else " = " if row["mean"] == above["mean"] else " > "
        order += f"{sign}{row['method']} {row['mean']:.2f}"
    tests = [_test(row, reference) for row in ranked if row["method"] != reference and row["pairs"] > 0]
    return "; ".join([f"{order} %" if order else "no finished trial", *tests, *diverged_texts(block)])


def _test(row: dict[str, Any], reference: str) -> str:
    """How one method differs from the reference."""
    told = f"{row['method']} {row['difference']:+.2f} points on {reference}"
    if row["pairs"] < 2:
        return f"{told} in one pair of trials, too few to tell from chance"
    if pd.isna(row["p"]):
        return f"{told} in each of {row['pairs']} pairs alike, without a spread to test"
    significant = "significant" if row["p"] < SIGNIFICANT else "not significant"
    return f"{told} ({significant} over {row['pairs']} equal seeds, {p_text(row['p'])})"


def draw_method_comparison(frame: pd.DataFrame) -> Figure:
    """Test top-1 of each method by network: every trial, mean and deviation; published figures hollow (Table 2)."""
    rows = pd.DataFrame(method_comparison_rows(frame))
    models, methods = list(rows["model"].unique()), list(rows["method"].unique())
    colours, finished = method_colours(methods), _finished(frame)
    figure = Figure(figsize=(2.8 + max(0.6 * len(methods), 1.6) * len(models), 4.6), layout="constrained")
    panel = figure.subplots()
    step = min(WIDEST_STEP, ROOM / len(methods))
    for number, method in enumerate(methods):
        aside = step * (number - (len(methods) - 1) / 2)
        table = rows[rows["method"] == method]
        at = table["model"].map(models.index).to_numpy(float) + aside
        colour = colours[method]
        trials = finished[finished["method"] == method]
        beside = trials["model"].map(models.index).to_numpy(float) + aside - step / 4
        panel.scatter(beside, trials[TOP1], s=10, color=colour, alpha=0.45, linewidths=0)
        panel.errorbar(
            at, table["mean"], table["std"].fillna(0), fmt="o", color=colour, markersize=6, capsize=4, label=method
        )
        panel.errorbar(
            at + step / 4,
            table["published"],
            table["published_std"],
            fmt="D",
            color=colour,
            markerfacecolor="none",
            markersize=6,
            capsize=3,
            alpha=0.8,
        )
    handles, _ = panel.get_legend_handles_labels()
    if rows["published"].notna().any():
        hollow = Line2D([], [], color="0.3", marker="D", markerfacecolor="none", linestyle="", label="published")
        handles.append(hollow)
    figure.legend(handles=handles, fontsize="small", loc="outside right upper")
    panel.set_xticks(range(len(models)), models)
    panel.set_xlim(-0.5, len(models) - 0.5)
    panel.set(
        xlabel="network", ylabel="test top-1 accuracy (%)", title=", ".join(map(short_data, rows["data"].unique()))
    )
    panel.grid(alpha=0.3)
    count = int((rows["trials"] + rows["diverged"]).max())
    figure.supxlabel(
        f"mean and standard deviation of {count} trial{'s' * (count > 1)}; small dots: every trial",
        fontsize="small",
        color="0.4",
    )
    return figure

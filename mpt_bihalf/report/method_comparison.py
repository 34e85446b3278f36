"""Table, figure and finding of networks x methods, beside the published figures (Table 2, Table 3, Fig. 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..data import short_data
from ..sweep.records import write_results
from .figures import method_colours
from .outcome import Curves, conclude
from .published import published
from .statistics import SIGNIFICANT, TOP1, compare, diverged_texts, p_text, reference_of
from .tables import of_trials

CLAIM = (
    "on CIFAR-10 bi-half is the most accurate of the three at every depth (Conv2/4/6/8: 79.25, 87.68, 89.92, 90.40 %), "
    "then IR-Net (78.32 to 90.06 %), then sign (77.86 to 89.17 %), each a mean of 5 trials"
)

ARCHITECTURES_CLAIM = (
    "on CIFAR-100 bi-half is slightly more accurate than sign and IR-Net on five architectures, with real-valued and "
    "with binary activations, above all on VGG16, and never less accurate"
)
IMAGENET_CLAIM = (
    "on ImageNet, weights and activations binary, bi-half has 60.40 % top-1 and 82.86 % top-5 with ResNet-18 (sign "
    "59.98 and 82.47 %), 64.17 and 85.36 % with ResNet-34"
)

# Our names of the data sets and networks that the published tables are of.
PUBLISHED_DATA = {"cifar10": "CIFAR-10", "imagenet": "ImageNet"}
PUBLISHED_TABLES = ("Table 2", "Table 3")
PUBLISHED = ("published", "published_std", "published_top5")
# Networks are 1 apart; how far apart their methods stand at most, and how much room they have together.
WIDEST_STEP, ROOM = 0.2, 0.8


def method_comparison_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each network and method: its settings, test top-1 in percent over the trials, and the published one.

    frame: the records of runs. model: as `networks_of` calls it. mean and std (of a sample) are of the last epoch, top5
    likewise; difference (in points), pairs and p (paired t test over equal seeds) are against
    `statistics.reference_of`. The published figures are there where data, network and method are those of the paper's
    Table 2 or 3.
    """
    frame = frame.assign(model=networks_of(frame))
    frame["test_top5"] = frame.get("test_top5", np.nan)
    settings = frame.groupby(["model", "data", "method"], sort=False)[["scale", "lr", "weight_decay"]].first()
    settings["top5"] = frame.groupby(["model", "data", "method"], sort=False)["test_top5"].mean()
    table = settings.merge(compare(frame, reference_of(frame)), on=["model", "data", "method"])
    known = _published()
    columns = ["model", "data", "method", "scale", "lr", "weight_decay", "trials", "diverged", "mean", "std"]
    columns += ["difference", "pairs", "p", "top5"]
    rows = []
    for row in table.to_dict("records"):
        place = (PUBLISHED_DATA.get(short_data(row["data"]), ""), row["model"], row["method"])
        rows.append({name: row[name] for name in columns} | known.get(place, dict.fromkeys(PUBLISHED, np.nan)))
    return rows


def networks_of(frame: pd.DataFrame) -> pd.Series:
    """The network of each record, with its width where that is not 1, and ` 1/1` where its activations are binary."""
    names = frame["model"]
    if "width" in frame:
        names = names + frame["width"].map(lambda width: "" if width == 1 else f" x{width:g}")
    if "activations" in frame:
        names = names + frame["activations"].map(lambda activations: "" if activations == "real" else " 1/1")
    return names


def published_elsewhere(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Further rows: what is published of other methods on the networks and data of these."""
    ours = {row["method"] for row in rows}
    return [
        {"model": model, "data": data, "method": method} | figures
        for model, data in dict.fromkeys((row["model"], row["data"]) for row in rows)
        for (dataset, network, method), figures in _published().items()
        if (dataset, network) == (PUBLISHED_DATA.get(short_data(data)), model) and method not in ours
    ]


def _published() -> dict[tuple[str, str, str], dict[str, float]]:
    """Published top-1, its deviation and top-5 in percent, by data set, network as `networks_of` has it, and method."""
    return {
        (row["dataset"], _our_name(row["model"], row["bits_w_a"]), row["method"]): {
            name: row[figure] for name, figure in zip(PUBLISHED, ("top1", "top1_std", "top5"), strict=True)
        }
        for row in published().to_dict("records")
        if row["table"] in PUBLISHED_TABLES
    }


def _our_name(model: str, bits: str) -> str:
    # Full precision stands beside the 1/1 networks that it is there to be compared with.
    return model.lower().replace("-", "") + ("" if bits == "1/32" else " 1/1")


def method_comparison_curves(frame: pd.DataFrame) -> dict[str, list[tuple[int, float]]]:
    """Test top-1 in percent of each network and method by seed."""
    return {
        f"{TOP1}/{model}/{method}": list(zip(block["seed"].tolist(), block[TOP1].tolist(), strict=True))
        for (model, method), block in _finished(frame.assign(model=networks_of(frame))).groupby(
            ["model", "method"], sort=False
        )
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
    frame = frame.assign(model=networks_of(frame))
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
    figure.supxlabel(f"{of_trials(count)}; small dots: every trial", fontsize="small", color="0.4")
    return figure


def conclude_comparison(out: Path, name: str, records: list[dict[str, Any]], claim: str, others: bool = False) -> None:
    """Write and print the outcome of a comparison. others: whether other methods' published figures stand there too."""
    write_results(out, records)
    frame = pd.DataFrame(records)
    rows = method_comparison_rows(frame)
    table = [*rows, *published_elsewhere(rows)] if others else rows
    curves: Curves = {**method_comparison_curves(frame)}
    conclude(out, name, table, draw_method_comparison(frame), curves, method_comparison_finding(rows), claim)

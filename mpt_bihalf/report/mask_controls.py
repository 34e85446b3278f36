"""Learned masks against random ones of the same count, and against themselves shuffled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .figures import COLOURS, MARKERS
from .statistics import SIGNIFICANT, TOP1, paired

MASKS = {
    "learned": "learned",
    "shuffled": "learned, then shuffled within the layers",
    "random": "random, never learned",
}
CLAIM = (
    "Multi-prize tickets (Diffenderfer & Kailkhura 2021): a random network holds subnetworks that are accurate once "
    "found and binarized; which weights are kept is what is learned."
)


def mask_controls_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each network, method and rate: mean and deviation of each mask's test top-1 in percent, and p.

    frame: a row for each run and mask with the columns model, method, prune_rate, seed, mask (a key of `MASKS`) and
    test_top1. p: paired t test over equal seeds of the learned mask against each control.
    """
    rows = []
    for (model, method, rate), block in frame.groupby(["model", "method", "prune_rate"], sort=False):
        of_mask = {mask: block[block["mask"] == mask] for mask in MASKS}
        row: dict[str, Any] = {"model": model, "method": method, "pruned, %": 100 * rate}
        row["trials"] = int(of_mask["learned"][TOP1].count())
        for mask, runs in of_mask.items():
            row |= {mask: runs[TOP1].mean(), f"{mask} std": runs[TOP1].std()}
        for mask in ("shuffled", "random"):
            row[f"p against {mask}"] = paired(of_mask["learned"], of_mask[mask])["p"]
        rows.append(row)
    return rows


def draw_mask_controls(frame: pd.DataFrame) -> Figure:
    """Test top-1 against the percentage of pruned weights: a panel for each network and method, a line a mask."""
    groups = list(frame.groupby(["model", "method"], sort=False))
    columns = min(len(groups), 3)
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.6 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for panel, ((model, method), block) in zip(panels, groups, strict=False):
        for place, (mask, label) in enumerate(MASKS.items()):
            points = block[block["mask"] == mask].groupby("prune_rate")[TOP1].agg(["mean", "std"])
            panel.errorbar(
                100 * points.index,
                points["mean"],
                points["std"].fillna(0),
                color=COLOURS[place],
                marker=MARKERS[place],
                markersize=5,
                capsize=3,
                label=label,
            )
        panel.set(title=f"{model}, {method}", xlabel="weights pruned (%)", ylabel="test top-1 accuracy (%)")
        panel.grid(alpha=0.3)
    for panel in panels[len(groups) :]:
        panel.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def mask_controls_curves(frame: pd.DataFrame) -> dict[str, list[tuple[int, float]]]:
    """Mean test top-1 by the percentage of pruned weights, for each network, method and mask."""
    means = frame.groupby(["model", "method", "mask", "prune_rate"], sort=False)[TOP1].mean().dropna()
    curves: dict[str, list[tuple[int, float]]] = {}
    for (model, method, mask, rate), value in means.items():
        curves.setdefault(f"{model}/{method}/{mask}", []).append((round(100 * rate), float(value)))
    return curves


def mask_controls_finding(rows: list[dict[str, Any]]) -> str:
    """One line: by how much learned masks beat, or do not beat, the two controls, and in how many settings surely."""
    parts = []
    for mask in ("random", "shuffled"):
        gains = np.array([row["learned"] - row[mask] for row in rows])
        told = np.isfinite(gains)
        if not told.any():
            return "too few finished runs to compare the learned masks with their controls"
        sure = sum(
            bool(gain > 0 and row[f"p against {mask}"] < SIGNIFICANT) for gain, row in zip(gains, rows, strict=True)
        )
        mean = gains[told].mean()
        verb = "beats" if mean > 0 else "loses to" if mean < 0 else "equals"
        size = f" by {abs(mean):.1f} points" if mean else ""
        name = "a random one of the same count" if mask == "random" else "itself shuffled within its layers"
        parts.append(
            f"{verb} {name}{size} on average (above it in {int((gains[told] > 0).sum())} of {told.sum()} settings, "
            f"in {sure} with p < {SIGNIFICANT})"
        )
    return f"a learned mask {' and '.join(parts)}"

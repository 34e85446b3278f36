"""What learning a mask brings over a random or a shuffled one of the same count."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..endings import run_command
from ..methods import METHODS, find_method
from ..report.figures import COLOURS, MARKERS, draw_spread
from ..report.outcome import Curves, Outcome
from ..report.statistics import SIGNIFICANT, TOP1, paired
from ..training import Run
from ..training.finished import evaluate_shuffled
from ..training.record import SHUFFLED
from .experiment import TrainingExperiment
from .grid import Grid, parse_rates
from .recipe import PAPER, QUICK, Recipe
from .results import Results

MASKS = {
    "learned": "learned",
    "shuffled": "learned, then shuffled within the layers",
    "random": "random, never learned",
}


@dataclass(frozen=True, kw_only=True)
class MaskControls(TrainingExperiment):
    """Which runs to do, each with a learned mask and with a random one. An option that is not given takes the recipe's
    value."""

    name = "mask_controls"
    about = "Compare learned masks with random ones of the same count, and with shuffled ones."
    claim = (
        "Multi-prize tickets (Diffenderfer & Kailkhura 2021): a random network holds subnetworks that are accurate "
        "once found and binarized; which weights are kept is what is learned."
    )
    recipes: ClassVar = {
        "quick": Recipe("digits", ("conv2",), ("mpt-sign", "mpt-bihalf", "mpt-balanced"), 3, 3, QUICK),
        "paper": Recipe("cifar10", ("conv2",), ("mpt-sign", "mpt-bihalf", "mpt-balanced"), 5, 100, PAPER),
    }
    needs = (SHUFFLED,)

    rates: str = "0.1..0.9:0.2"
    """fractions PRUNED: 0.1..0.9:0.2 (steps of 0.2), 0.5, or several with commas"""
    out: str = "runs/mask_controls"
    """folder for runs, table, figure and curves"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        rates = parse_rates(self.rates)

        def vary(method: str) -> Grid:
            if find_method(method).trains != "scores":
                those = ", ".join(name for name, known in METHODS.items() if known.trains == "scores")
                raise ValueError(f"method {method!r} learns no mask; {those} do")
            # A mask that does not learn is the same after one epoch as after many.
            return Grid(
                [{"prune_rate": rate} for rate in rates], [{"learn_mask": True}, {"learn_mask": False, "epochs": 1}]
            )

        return self.runs_of(vary)

    def outcome(self, results: Results) -> Outcome:
        learned = [run for run in results.finished if run.learn_mask]
        frame = per_mask(results.records, results.look_again(evaluate_shuffled, learned, "shuffled masks"))
        rows = rows_of(frame)
        return Outcome(rows=rows, figure=draw(frame), curves=curves_of(frame), finding=finding_of(rows))


def per_mask(records: list[dict[str, Any]], shuffled: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row for each run and mask: the records, and what is left of the learned masks' figures once they are shuffled.

    shuffled: by run, as `evaluate_shuffled` has them.
    """
    frame = pd.DataFrame(records)
    frame["mask"] = frame["learn_mask"].map({True: "learned", False: "random"})
    frame[TOP1] = frame.get(TOP1, np.nan)  # no record has it where all runs diverged
    again = [
        {name: record[name] for name in ("model", "method", "prune_rate", "seed")}
        | {"mask": "shuffled"}
        | shuffled[record["run"]]
        for record in records
        if record["run"] in shuffled
    ]
    return pd.concat([frame, pd.DataFrame(again)], ignore_index=True)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
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


def draw(frame: pd.DataFrame) -> Figure:
    """Test top-1 against the percentage of pruned weights: a panel for each network and method, a line a mask."""
    groups = list(frame.groupby(["model", "method"], sort=False))
    columns = min(len(groups), 3)
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.6 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for panel, ((model, method), block) in zip(panels, groups, strict=False):
        for place, (mask, label) in enumerate(MASKS.items()):
            points = block[block["mask"] == mask].groupby("prune_rate")[TOP1].agg(["mean", "std"])
            draw_spread(panel, 100 * points.index, points, color=COLOURS[place], marker=MARKERS[place], label=label)
        panel.set(title=f"{model}, {method}", xlabel="weights pruned (%)", ylabel="test top-1 accuracy (%)")
        panel.grid(alpha=0.3)
    for panel in panels[len(groups) :]:
        panel.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def curves_of(frame: pd.DataFrame) -> Curves:
    """Mean test top-1 by the percentage of pruned weights, for each network, method and mask."""
    means = frame.groupby(["model", "method", "mask", "prune_rate"], sort=False)[TOP1].mean().dropna()
    curves: Curves = {}
    for (model, method, mask, rate), value in means.items():
        curves.setdefault(f"{model}/{method}/{mask}", []).append((round(100 * rate), float(value)))
    return curves


def finding_of(rows: list[dict[str, Any]]) -> str:
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


if __name__ == "__main__":
    run_command(MaskControls.main)

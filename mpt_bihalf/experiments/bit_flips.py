"""Bit flips of one filter while training (Fig. 2)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..endings import run_command
from ..report.figures import FOOTNOTE, method_colours
from ..report.outcome import Curves, Outcome
from ..report.traces import (
    RUN,
    STEP,
    Row,
    compare_methods,
    draw_places,
    finished_traces,
    mean_curves,
    summarise_runs,
    tell_differences,
    tell_places,
)
from ..sweep import having
from .recipe import FULL, OF_METHOD, PAPER, QUICK, Recipe
from .results import Results
from .traced import TracedExperiment

SIGNS = ("to_positive", "to_negative")
SUMMARY = ["layer", "weights", "flips", *SIGNS, "imbalance", "most_imbalance"]
# Flips of a step are drawn as means over such a part of the training: a filter has few.
SMOOTHED = 1 / 20


@dataclass(frozen=True, kw_only=True)
class BitFlips(TracedExperiment):
    """Trainings whose flips are counted. With equal seeds all methods begin with the same latent weights and the same
    signs, half of those of a filter +1."""

    name = "bit_flips"
    about = "Count the bit flips of one filter to +1 and to -1 while networks train."
    claim = (
        "sign flips unevenly and IR-Net evenly but with no guarantee; "
        "bi-half flips exactly as often to +1 as to -1, so that their difference stays at zero"
    )
    recipes: ClassVar = {
        "quick": Recipe("digits", ("conv2",), FULL, 3, 5, {**QUICK, "trace": 1, "init": "equal_bits"}, OF_METHOD),
        "paper": Recipe("cifar10", ("conv2",), FULL, 5, 100, {**PAPER, "trace": 50, "init": "equal_bits"}, OF_METHOD),
    }

    layer: str = ""
    """the layer whose first filter to look at, by name (default: the second binarized one)"""
    out: str = "runs/bit_flips"
    """folder for runs, table, figure and curves"""

    def outcome(self, results: Results) -> Outcome:
        records = having(results.records, results.trace)
        steps = per_step(records, results.trace, self.layer)
        rows = rows_of(per_run(records, steps))
        return Outcome(rows=rows, figure=draw(steps), curves=curves_of(steps), finding=finding_of(rows), steps=steps)


def per_step(records: list[Row], trace: pd.DataFrame, layer: str = "") -> pd.DataFrame:
    """A row for each traced step of each finished run: the flips of the first filter of a layer.

    layer: its name; empty for the second one of each network. Columns: those of `RUN`, step, layer, weights (of the
    filter), iterations (since the traced step before), to_positive and to_negative (flips in these), those two with
    _sum (flips so far), and imbalance (their difference: to +1 less to -1).
    """
    first_filter = {f"first_filter_{name}": name for name in SIGNS}
    traces = finished_traces(records, trace, ["step", "layer", "connections", *first_filter])
    traces = traces.rename(columns={"connections": "weights", **first_filter})
    names = {model: layer or part["layer"].unique()[1] for model, part in traces.groupby("model")}
    steps = traces[traces["layer"] == traces["model"].map(names)].reset_index(drop=True)
    runs = steps.groupby(RUN, sort=False)
    steps["iterations"] = runs["step"].diff().fillna(steps["step"])
    for name in SIGNS:
        steps[f"{name}_sum"] = runs[name].cumsum()
    steps["imbalance"] = steps["to_positive_sum"] - steps["to_negative_sum"]
    return steps


def per_run(records: list[Row], steps: pd.DataFrame) -> pd.DataFrame:
    """A row for each run: layer, weights of the filter, and its flips over the training; NaN if it diverged.

    flips: in both directions; imbalance: at the end, without its sign; most_imbalance: of all traced steps.
    """

    def summary(part: pd.DataFrame) -> Row:
        end = part.iloc[-1]
        totals = {name: end[f"{name}_sum"] for name in SIGNS}
        imbalance = part["imbalance"].abs()
        return {
            **end[["layer", "weights"]],
            "flips": sum(totals.values()),
            **totals,
            "imbalance": imbalance.iloc[-1],
            "most_imbalance": imbalance.max(),
        }

    return summarise_runs(records, steps, summary, SUMMARY)


def rows_of(runs: pd.DataFrame) -> list[Row]:
    """A row for each method: means over the finished trials, but of most_imbalance the extreme trial's.

    runs: as `per_run` has them. difference and p: of `flips` against bihalf, over equal seeds.
    """

    def further(trials: pd.DataFrame) -> Row:
        means = {name: trials[name].mean() for name in (*SIGNS, "imbalance")}
        place = {name: trials[name].dropna().max() for name in ("layer", "weights")}
        return {**place, **means, "most_imbalance": trials["most_imbalance"].max()}

    return compare_methods(runs, "flips", further)


def curves_of(steps: pd.DataFrame) -> Curves:
    """`mean_curves` of the flips so far and of their difference."""
    return mean_curves(steps, [*(f"{name}_sum" for name in SIGNS), "imbalance"])


def finding_of(rows: list[Row]) -> str:
    """One line: who flips as often in both directions and by how much the others do not, and who flips how often."""
    return tell_places(rows, _tell)


def _tell(rows: list[Row]) -> str:
    parts = []
    even = [row["method"] for row in rows if row["flips"] and not row["most_imbalance"]]
    if even:
        verb = "flips" if len(even) == 1 else "flip"
        parts.append(f"{' and '.join(even)} {verb} as often to +1 as to -1 at every traced step")
    uneven = sorted((row for row in rows if row["most_imbalance"]), key=lambda row: row["most_imbalance"])
    if uneven:
        reached = ", ".join(f"{row['most_imbalance']:,.0f} in {row['method']}" for row in uneven)
        parts.append(f"the difference of the accumulated flips reaches {reached}")
    parts.append(f"flips in a training: {tell_differences(rows, 'flips', 1)}")
    return f"first filter of layer {rows[0]['layer']} ({rows[0]['weights']:,.0f} weights): {'; '.join(parts)}"


def draw(steps: pd.DataFrame) -> Figure:
    """For each network the flips of an iteration, those accumulated, and their difference (Fig. 2).

    All of each method's first trial; of its other trials the difference alone, faint.
    """
    figure, places = draw_places(steps, 3, 14, 4.4)
    colours = method_colours(steps["method"])
    for part, panels, name in places:
        for method, trials in part.groupby("method", sort=False):
            _draw_method(panels, trials, {"color": colours[method], "label": method})
        rates, sums, differences = panels
        shown = f"first filter of layer {part['layer'].iloc[0]} ({part['weights'].iloc[0]:,} weights)"
        rates.set(title=f"{name}: {shown}", ylabel="flips per iteration (to +1 above 0, to -1 below)")
        sums.set(title="accumulated", ylabel="flips so far")
        differences.set(title="difference", ylabel="flips to +1 less flips to -1, so far")
        for label, linestyle in (("to +1", "-"), ("to -1", "--")):
            sums.plot([], [], color="0.3", linestyle=linestyle, label=label)
        for panel in panels:
            panel.axhline(0, color="black", linewidth=0.6, zorder=1)
            panel.set_xlabel(STEP)
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small")
    trials = steps["seed"].nunique()
    about = f"first of {trials} trial{'s' * (trials != 1)}{', the others faint' * (trials > 1)}"
    means = f"flips per iteration are means over {100 * SMOOTHED:g} % of the training"
    figure.supxlabel(f"{about}; {means}", **FOOTNOTE)
    return figure


def _draw_method(panels: np.ndarray, trials: pd.DataFrame, style: dict[str, Any]) -> None:
    rates, sums, differences = panels
    (_, first), *others = trials.groupby("seed", sort=False)
    _draw_rates(rates, first, style)
    sums.plot(first["step"], first["to_positive_sum"], **style)
    sums.plot(first["step"], first["to_negative_sum"], **{**style, "linestyle": "--", "label": None})
    differences.plot(first["step"], first["imbalance"], linewidth=1.8, **style)
    for _, run in others:
        faint = {"linewidth": 0.9, "alpha": 0.4, "label": None, "zorder": 1.5}
        differences.plot(run["step"], run["imbalance"], **{**style, **faint})


def _draw_rates(panel: Axes, run: pd.DataFrame, style: dict[str, Any]) -> None:
    """Flips per iteration of one run, to +1 above zero and to -1 below, as moving means."""
    window = max(1, round(SMOOTHED * len(run)))
    moving = run[[*SIGNS, "iterations"]].rolling(window, min_periods=1, center=True).sum()
    panel.plot(run["step"], moving["to_positive"] / moving["iterations"], **style)
    panel.plot(run["step"], -moving["to_negative"] / moving["iterations"], **{**style, "label": None})


if __name__ == "__main__":
    run_command(BitFlips.main)

"""The entropy of binary weights while training (Fig. 1a)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import entr

from ..endings import run_command
from ..methods import METHODS
from ..report.figures import FOOTNOTE, method_colours
from ..report.outcome import Outcome
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

SUMMARY = ["start", "end", "lowest", "spread", "possible", "short", "exact"]


@dataclass(frozen=True, kw_only=True)
class WeightEntropy(TracedExperiment):
    """Trainings whose weights are looked at. An option that is not given takes the recipe's value."""

    name = "weight_entropy"
    about = "Follow the entropy of the binary weights of each filter while networks train."
    claim = (
        "sign and IR-Net have weights of less than the maximum entropy, which changes while training; "
        "bi-half keeps exactly the maximum of 1 bit throughout"
    )
    recipes: ClassVar = {
        "quick": Recipe("digits", ("conv2",), FULL, 3, 5, {**QUICK, "trace": 2}, OF_METHOD),
        "paper": Recipe("cifar10", ("conv2",), FULL, 5, 100, {**PAPER, "trace": 100}, OF_METHOD),
    }

    layer: str = ""
    """one layer to look at, by name (default: the mean over all, which count alike)"""
    out: str = "runs/weight_entropy"
    """folder for runs, table, figure and curves"""

    def outcome(self, results: Results) -> Outcome:
        records = having(results.records, results.trace)
        layers = per_layer(records, results.trace, self.layer)
        steps = per_step(layers)
        rows = rows_of(per_run(records, steps))
        return Outcome(
            rows=rows,
            figure=draw(steps, layers),
            curves=mean_curves(steps, ["entropy"]),
            finding=finding_of(rows),
            steps=steps,
        )


def per_layer(records: list[Row], trace: pd.DataFrame, layer: str = "") -> pd.DataFrame:
    """A row for each layer and traced step of each finished run; with `layer` of that one alone. Entropies in bits.

    Columns: those of `RUN`, step, layer, connections (of a filter), entropy (mean over the filters), spread (standard
    deviation over them), possible (the highest that this number of connections allows; NaN where a mask leaves
    another), exact (whether each filter has that: a mean would not show that one filter is off by one weight).
    """
    shares = ["filter_share_lowest", "filter_share_highest"]
    measured = ["step", "layer", "connections", "filter_entropy", "filter_entropy_std", *shares]
    layers = finished_traces(records, trace, measured)
    layers = layers.rename(columns={"filter_entropy": "entropy", "filter_entropy_std": "spread"})
    connections = layers["connections"]
    fewest, most = ((layers[share] * connections).round() for share in shares)
    layers["exact"] = (fewest >= connections // 2) & (most <= (connections + 1) // 2)
    layers["possible"] = highest_entropy(connections.to_numpy(float))
    masked = layers["method"].map(lambda method: METHODS[method].mask is not None).astype(bool)
    layers.loc[masked, "possible"] = np.nan
    layers = layers.drop(columns=shares)
    return layers[layers["layer"] == layer] if layer else layers


def highest_entropy(connections: np.ndarray) -> np.ndarray:
    """Bits of as equal a split of so many weights as there is: 1 for an even number, less for an odd one."""
    share = np.ceil(connections / 2) / connections
    return (entr(share) + entr(1 - share)) / np.log(2)


def per_step(layers: pd.DataFrame) -> pd.DataFrame:
    """A row for each traced step of each run: means over its layers, which count alike, and whether all are exact.

    spread is the root of the mean variance over the filters of a layer, so 0 where in each layer all filters agree.
    """
    layers = layers.assign(spread=layers["spread"] ** 2)
    groups = layers.groupby([*RUN, "step"], sort=False)
    steps = groups[["entropy", "spread", "possible"]].mean().join(groups["exact"].all()).reset_index()
    return steps.assign(spread=np.sqrt(steps["spread"]))


def per_run(records: list[Row], steps: pd.DataFrame) -> pd.DataFrame:
    """A row for each run, in bits; NaN if it diverged.

    start, end: entropy at the first and the last traced step; lowest: of all; spread: over the filters at the end;
    possible: the highest that the numbers of connections allow; short: the most by which a step falls short of that;
    exact: whether each filter has it at each step.
    """

    def summary(part: pd.DataFrame) -> Row:
        entropy = part["entropy"]
        return {
            "start": entropy.iloc[0],
            "end": entropy.iloc[-1],
            "lowest": entropy.min(),
            "spread": part["spread"].iloc[-1],
            "possible": part["possible"].iloc[-1],
            "short": (part["possible"] - entropy).max(),
            "exact": part["exact"].all(),
        }

    return summarise_runs(records, steps, summary, SUMMARY)


def rows_of(runs: pd.DataFrame) -> list[Row]:
    """A row for each method, in bits: means over the finished trials, but of lowest and short the extreme trial's.

    runs: as `per_run` has them. exact: whether all are; None where a mask leaves it open. difference and p:
    of `end` against bihalf, over equal seeds.
    """

    def further(trials: pd.DataFrame) -> Row:
        means = {name: trials[name].mean() for name in ("start", "spread", "possible")}
        extremes = {"lowest": trials["lowest"].min(), "short": trials["short"].max()}
        exact = bool(trials["exact"].dropna().all()) if pd.notna(means["possible"]) else None
        return {**means, **extremes, "exact": exact}

    return compare_methods(runs, "end", further)


def finding_of(rows: list[Row]) -> str:
    """One line: who ends with how many bits, who has the most that is possible, who gains or loses while training."""
    return tell_places(rows, _tell)


def _tell(rows: list[Row]) -> str:
    parts = [f"bits of entropy at the end: {tell_differences(rows, 'end', 4)}"]
    most = "the most that an odd or even count allows"
    known = [row for row in rows if pd.notna(row["short"])]
    exact = [row["method"] for row in known if row["exact"]]
    if exact:
        parts.append(f"every filter always at {most}: {', '.join(exact)}")
        most = "it"
    short = [f"{row['method']} {row['short']:.2g}" for row in known if not row["exact"]]
    if short:
        parts.append(f"on average below {most} by up to: {', '.join(short)}")
    changed = [row for row in rows if round(row["end"] - row["start"], 4)]
    parts.append(f"change while training: {', '.join(_change(row) for row in changed) or 'none'}")
    return "; ".join(parts)


def _change(row: Row) -> str:
    return f"{row['method']} {row['end'] - row['start']:+.4f}"


def draw(steps: pd.DataFrame, layers: pd.DataFrame) -> Figure:
    """For each network the entropy against the step (Fig. 1a), and where there are several layers what each lacks."""
    several = layers["layer"].nunique() > 1
    figure, places = draw_places(steps, 1 + several, 11 if several else 6.5, 4.4)
    colours = method_colours(steps["method"])
    for part, panels, name in places:
        here = layers[layers["model"] == part["model"].iloc[0]]
        _draw_steps(panels[0], part, colours)
        mean = "mean over the layers" if several else f"layer {here['layer'].iloc[0]}"
        panels[0].set(title=f"{name}: {mean}", xlabel=STEP, ylabel="entropy of the weights of a filter (bits)")
        if several:
            _draw_layers(panels[1], here[here["step"] == here["step"].max()], colours)
            panels[1].set(
                title=f"{name}: each layer at the end", ylabel="1 - entropy of the weights of a filter (bits)"
            )
        for panel in panels:
            panel.grid(alpha=0.3)
    trials = steps["seed"].nunique()
    figure.supxlabel(
        f"means over filters and {trials} trial{'s' * (trials != 1)}; bands: standard deviation over a layer's filters",
        **FOOTNOTE,
    )
    return figure


def _draw_steps(panel: Axes, steps: pd.DataFrame, colours: dict[str, str]) -> None:
    for method, trials in steps.groupby("method", sort=False):
        means = trials.groupby("step")[["entropy", "spread", "possible"]].mean()
        low, high = means["entropy"] - means["spread"], means["entropy"] + means["spread"]
        # A deviation may reach where no filter can be.
        high = high.clip(upper=means["possible"].fillna(1))
        panel.fill_between(means.index, low, high, color=colours[method], alpha=0.15, linewidth=0)
        panel.plot(means.index, means["entropy"], color=colours[method], label=method)
    possible = steps["possible"].mean()
    if pd.notna(possible):
        panel.axhline(possible, color="black", linestyle=":", linewidth=1.2, label="most possible")
    bottom, top = panel.get_ylim()
    panel.set_ylim(bottom - 0.2 * (top - bottom), top)  # room for the legend
    panel.legend(fontsize="small", ncols=2, loc="lower left")


def _draw_layers(panel: Axes, layers: pd.DataFrame, colours: dict[str, str]) -> None:
    """What each layer lacks of one bit. layers: at one step."""
    names = list(layers["layer"].unique())
    missing = 1 - layers.groupby(["method", "layer"], sort=False)[["entropy", "possible"]].mean()
    methods = list(layers["method"].unique())
    for place, method in enumerate(methods):
        aside = 0.18 * (place - (len(methods) - 1) / 2)
        heights = missing.loc[method].loc[names, "entropy"]
        panel.plot(np.arange(len(names)) + aside, heights, "o", color=colours[method], label=method, clip_on=False)
    least = missing.groupby("layer")["possible"].mean().loc[names]
    if least.notna().any():
        places = np.arange(len(names))
        style: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.2, "label": "least possible"}
        panel.hlines(least, places - 0.35, places + 0.35, **style)
    # Linear below a ten-thousandth of a bit, so that nothing missing has a place.
    panel.set_yscale("symlog", linthresh=1e-4)
    panel.set_ylim(0, 6)  # room for the legend
    panel.legend(fontsize="small", ncols=2, loc="upper right")
    connections = layers.drop_duplicates("layer")["connections"]
    ticks = [f"{name}\n({count:,})" for name, count in zip(names, connections, strict=True)]
    panel.set_xticks(range(len(names)), ticks)
    panel.set_xlabel("layer (connections of a filter)")


if __name__ == "__main__":
    run_command(WeightEntropy.main)

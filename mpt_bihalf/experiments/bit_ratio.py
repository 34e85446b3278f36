"""Accuracy against the share of +1 among the weights (Fig. 5)."""

from dataclasses import dataclass
from itertools import cycle
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..counts import round_half_up
from ..data import short_data
from ..endings import run_command
from ..methods import METHODS, find_method
from ..report.figures import FOOTNOTE, MARKERS, draw_spread, method_colours
from ..report.outcome import Curves, Outcome
from ..report.statistics import SIGNIFICANT, TOP1, paired
from ..report.traces import PLACE, Row
from ..sweep import having
from ..training import Run
from ..training.record import LAYERS, TRACE
from .experiment import TrainingExperiment
from .grid import Grid, parse_rates
from .recipe import OF_METHOD, PAPER, QUICK, Recipe
from .results import Results

SETTING = [*PLACE, "method", "p_pos"]
RUN = [*SETTING, "seed"]
# A trace is in float32, and two neighbouring shares of a filter are further apart than this.
ROUNDING = 2**-23


@dataclass(frozen=True, kw_only=True)
class BitRatio(TrainingExperiment):
    """Which runs to do. An option that is not given takes the recipe's value."""

    name = "bit_ratio"
    about = "Compare shares of +1 among the weights, from few to nearly all."
    claim = "on CIFAR-10 and on CIFAR-100 alike Conv2 is best where +1 and -1 are equally many"
    recipes: ClassVar = {
        "quick": Recipe("digits", ("conv2",), ("bihalf", "sign", "irnet"), 3, 3, {**QUICK, "trace": 1}, OF_METHOD),
        "paper": Recipe(
            "cifar10",
            ("conv2",),
            ("bihalf", "sign", "irnet"),
            5,
            100,
            {**PAPER, "trace": 100},
            OF_METHOD,
            varied={"data": ("cifar10", "cifar100")},
        ),
    }
    needs = (TRACE, LAYERS)
    binary = True

    ratios: str = "0.1..0.9"
    """shares of +1 (p_pos) for the methods that set it: 0.1..0.9 (steps of 0.1), 0.1..0.9:0.2 (steps of 0.2), 0.5, or
    several with commas; the other methods run once"""
    out: str = "runs/bit_ratio"
    """folder for runs, table, figure and curves"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        recipe = self.chosen_recipe()
        ratios = parse_rates(self.ratios, "ratios")
        data = [self.data] if self.data else recipe.varied.get("data", [recipe.data])

        def vary(method: str) -> Grid:
            own = ratios if find_method(method).balanced else [0.5]
            return Grid([{"data": one} for one in data], [{"p_pos": ratio} for ratio in own])

        return self.runs_of(vary)

    def outcome(self, results: Results) -> Outcome:
        records = having(results.records, results.trace, results.layers)
        steps = per_step(results.trace)
        runs = per_run(records, results.layers, steps)
        return Outcome(
            rows=rows_of(runs), figure=draw(runs), curves=curves_of(runs), finding=finding_of(runs), steps=steps
        )


def per_step(trace: pd.DataFrame) -> pd.DataFrame:
    """A row for each layer and traced step of each run: how close its filters are to the ratio asked for.

    trace: as `read_trace` has it. Columns: those of `RUN`, step, layer, connections (D of each filter),
    filter_share_lowest and filter_share_highest (of +1), filter_entropy and filter_entropy_std (bits), nearest (the
    nearest share to p_pos, `round_half_up(p_pos * D) / D`), exact (whether all filters have that share). Nearest is NaN
    and exact None for methods that set no ratio, or set it for an unknown number of kept weights.
    """
    columns = [*RUN, "step", "layer", "connections", "filter_share_lowest", "filter_share_highest"]
    steps = trace.reindex(columns=[*columns, "filter_entropy", "filter_entropy_std"])
    of = {(p, d): round_half_up(p, int(d)) / d for p, d in set(zip(steps["p_pos"], steps["connections"], strict=True))}
    nearest = pd.Series([of[key] for key in zip(steps["p_pos"], steps["connections"], strict=True)], steps.index, float)
    asked = steps["method"].map(lambda name: METHODS[name].balanced and METHODS[name].mask is None).astype(bool)
    steps["nearest"] = nearest.where(asked)
    exact = (steps[["filter_share_lowest", "filter_share_highest"]].sub(nearest, axis=0).abs() <= ROUNDING).all(axis=1)
    steps["exact"] = exact.astype(object).where(asked, None)
    return steps


def per_run(records: list[Row], layers: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """A row for each run: `RUN`, test top-1 in percent (NaN where it diverged), and its share of +1.

    layers: as `read_layers` has them; steps: as `per_step` has them. share: of the whole network at the end;
    share_lowest, share_highest: of the filters, at the last traced step. steps: how many were traced; exact: whether at
    each of them all filters had the nearest share there is (None where none is asked for); entropy_one: whether those
    filters that can have two equal halves, at p_pos 1/2, had exactly 1 bit (None without such).
    """
    runs = pd.DataFrame(records).reindex(columns=[*RUN, TOP1])
    for part in (_final_shares(layers), _traced(steps)):
        runs = runs.merge(part, how="left", on=RUN)
    return runs


def rows_of(runs: pd.DataFrame) -> list[Row]:
    """A row for each setting: means over the finished trials, but of the filters' shares the extreme trial's."""
    rows = []
    for setting, trials in runs.groupby(SETTING, sort=False):
        finished = trials.dropna(subset=[TOP1])
        row = dict(zip(SETTING, setting, strict=True))
        if not METHODS[str(row["method"])].balanced:
            row["p_pos"] = None
        row |= {"trials": len(finished), "diverged": len(trials) - len(finished)}
        row |= {TOP1: finished[TOP1].mean(), f"{TOP1}_std": finished[TOP1].std(), "share": finished["share"].mean()}
        row |= {"share_lowest": finished["share_lowest"].min(), "share_highest": finished["share_highest"].max()}
        asked = trials["exact"].dropna()
        rows.append(row | {"exact in each filter": None if asked.empty else "yes" if asked.all() else "no"})
    return rows


def finding_of(runs: pd.DataFrame) -> str:
    """One line: the best ratio, what others lose against it, and whether each filter had the ratio at each step."""
    told = [_tell_place(place, part) for place, part in runs.groupby(PLACE, sort=False)]
    return "; ".join([*told, _tell_exactness(runs)])


def curves_of(runs: pd.DataFrame) -> Curves:
    """Mean test top-1 in percent, for TensorBoard, with the share of +1 in thousandths as its step.

    The share is p_pos where the method is given one, else what it ends with. A tag is test_top1/network-data-method.
    """
    curves: Curves = {}
    for (model, data, method), trials in runs.dropna(subset=[TOP1, "share"]).groupby([*PLACE, "method"], sort=False):
        place = trials["p_pos"] if METHODS[method].balanced else trials["share"].mean()
        points = trials.assign(place=place).groupby("place")[TOP1].mean()
        curves[f"test_top1/{model}-{short_data(data)}-{method}"] = [(round(1000 * x), y) for x, y in points.items()]
    return curves


def draw(runs: pd.DataFrame) -> Figure:
    """Test top-1 against the share of +1, a panel for each network and data set (Fig. 5).

    Methods that are given a ratio are lines, with standard deviations over the trials. The others are points at the
    share that they end with, on lines that reach from the lowest to the highest share of a filter.
    """
    places = list(runs.groupby(PLACE, sort=False))
    figure = Figure(figsize=(6.4 * len(places), 4.6), layout="constrained")
    colours = method_colours(runs["method"])
    for panel, ((model, data), part) in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        panel.axvline(0.5, color="0.7", linestyle=":", zorder=0, label="equal bits")
        for marker, (method, trials) in zip(cycle(MARKERS), part.groupby("method", sort=False), strict=False):
            _draw_method(panel, str(method), trials, color=colours[str(method)], marker=marker)
        panel.set(title=f"{model}, {short_data(data)}", xlim=(-0.02, 1.02))
        panel.set(xlabel="share of +1 among the weights (p_pos)", ylabel="test top-1 accuracy (%)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    trials = runs["seed"].nunique()
    spread = f"means and standard deviations of {trials} trials" if trials > 1 else "one trial"
    figure.supxlabel(f"{spread}; lines beside single points: lowest to highest share of a filter", **FOOTNOTE)
    return figure


def _draw_method(panel: Axes, method: str, trials: pd.DataFrame, **style: Any) -> None:
    style |= {"markersize": 5, "capsize": 3}
    finished = trials.dropna(subset=[TOP1])
    if METHODS[method].balanced:
        top1 = finished.groupby("p_pos")[TOP1].agg(["mean", "std"])
        draw_spread(panel, top1.index, top1, label=f"{method}, as p_pos says", **style)
    elif len(finished):
        share, mean, std = finished["share"].mean(), finished[TOP1].mean(), finished[TOP1].std()
        reach = finished["share_lowest"].min(), finished["share_highest"].max()
        panel.plot(reach, [mean, mean], color=style["color"], alpha=0.5, linewidth=1)
        panel.errorbar([share], [mean], 0 if np.isnan(std) else std, label=f"{method}, as it ends up", **style)


def _final_shares(layers: pd.DataFrame) -> pd.DataFrame:
    """`RUN` and share: that of +1 among the kept weights of all layers after the last epoch."""
    layers = layers.reindex(columns=[*RUN, "epoch", "weights", "kept", "positive_share"])
    last = layers[layers["epoch"] == layers.groupby(RUN)["epoch"].transform("max")]
    kept = last["weights"] * last["kept"]
    sums = last.assign(kept=kept, positive=kept * last["positive_share"]).groupby(RUN)[["kept", "positive"]].sum()
    return (sums["positive"] / sums["kept"]).rename("share").reset_index()


def _traced(steps: pd.DataFrame) -> pd.DataFrame:
    """`RUN` and what the traced steps say of each run: the last five columns of `per_run`."""
    found = []
    for run, part in steps.groupby(RUN, sort=False):
        last, asked = part[part["step"] == part["step"].max()], part[part["exact"].notna()]
        halves = asked[(asked["p_pos"] == 0.5) & (asked["connections"] % 2 == 0)]
        one = (halves["filter_entropy"] == 1) & (halves["filter_entropy_std"] == 0)
        figures = {
            "share_lowest": last["filter_share_lowest"].min(),
            "share_highest": last["filter_share_highest"].max(),
            "steps": part["step"].nunique(),
            "exact": bool(asked["exact"].all()) if len(asked) else None,
            "entropy_one": bool(one.all()) if len(one) else None,
        }
        found.append(dict(zip(RUN, run, strict=True)) | figures)
    return pd.DataFrame(found, columns=[*RUN, "share_lowest", "share_highest", "steps", "exact", "entropy_one"])


def _tell_place(place: tuple[str, str], runs: pd.DataFrame) -> str:
    model, data = place
    told = []
    for method, trials in runs.groupby("method", sort=False):
        if METHODS[str(method)].balanced:
            told.append(f"{method} {_tell_best(trials)}")
    diverged = int(runs[TOP1].isna().sum())
    if diverged:
        told.append(f"{diverged} of {len(runs)} runs diverged")
    return f"{model}, {short_data(data)}: {', '.join(told) or 'no method was given a ratio'}"


def _tell_best(runs: pd.DataFrame) -> str:
    """Which p_pos of one method is best, which others may be as good, what the extremes and equal bits lose."""
    finished = runs.dropna(subset=[TOP1])
    means = finished.groupby("p_pos")[TOP1].mean()
    if len(means) < 2:
        return "has finished runs of fewer than two ratios, too few to compare"
    best = means.idxmax()
    parts = [f"is best at p_pos {best:g} ({means[best]:.2f} %)"]
    watched = dict.fromkeys([means.index[0], means.index[-1], *([0.5] if 0.5 in means.index else [])])
    losses = [f"{p:g} loses {means[best] - means[p]:.2f} points" for p in watched if p != best]
    parts.append(" and ".join(losses))
    at = {p: finished[finished["p_pos"] == p] for p in means.index}
    tests = {p: paired(at[p], at[best]) for p in means.index if p != best}
    if max(test["pairs"] for test in tests.values()) < 2:
        parts.append("one trial each is too little to tell this from chance")
    else:
        alike = [f"{p:g}" for p, test in tests.items() if _is_alike(test)]
        parts.append(f"not told apart from it by a paired t test: {' '.join(alike) or 'none'}")
    return ", ".join(parts)


def _is_alike(test: dict[str, float]) -> bool:
    if test["pairs"] < 2:
        return True
    # There is no p where all pairs differ by the same.
    return test["difference"] == 0 if np.isnan(test["p"]) else test["p"] >= SIGNIFICANT


def _tell_exactness(runs: pd.DataFrame) -> str:
    asked = runs[runs["exact"].notna()]
    if asked.empty:
        return "no ratio was asked for that the trace could be held against"
    missed = asked[~asked["exact"].astype(bool)]
    if len(missed):
        ratios = ", ".join(f"{p:g}" for p in sorted(missed["p_pos"].unique()))
        return (
            "the share of +1 was NOT always the nearest possible in each filter: "
            f"missed in {len(missed)} of {len(asked)} runs, p_pos {ratios}"
        )
    halves = asked["entropy_one"].dropna()
    entropy = ""
    if len(halves):
        verb = "was exactly" if halves.all() else "was NOT always"
        entropy = f", and at p_pos 0.5 the entropy of filters of an even number of connections {verb} 1 bit"
    count = f"{int(asked['steps'].sum()):,} traced steps of {len(asked)} runs"
    return f"the share of +1 was the nearest possible in each filter at all {count}{entropy}"


if __name__ == "__main__":
    run_command(BitRatio.main)

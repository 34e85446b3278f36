"""Accuracy of each method on each network, beside the published figures (Table 2)."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..commandline import words
from ..data import short_data
from ..endings import run_command, show
from ..files import write_csv
from ..report.figures import FOOTNOTE, draw_spread, method_colours
from ..report.outcome import Curves, Outcome
from ..report.published import OUR_NAMES, published
from ..report.statistics import SIGNIFICANT, TOP1, compare, diverged_texts, p_text, reference_of
from ..report.tables import of_trials
from ..sweep import EngineOptions, read_records, run_all
from ..training import Callback, Run
from .experiment import MOST_TRIALS, TrainingExperiment
from .grid import Grid
from .recipe import FULL, OF_METHOD, OF_MODEL, PAPER, QUICK, Recipe
from .results import Results

TUNED = ("lr", "weight_decay")
ARM = ("model", "activations", "method")
# Share of the training images that a tuning run does without, to be chosen on.
HOLDOUT = 0.1
# Our names of the data sets and networks that the published tables are of.
PUBLISHED_DATA = {"cifar10": "CIFAR-10", "imagenet": "ImageNet"}
PUBLISHED_TABLES = ("Table 2", "Table 3")
# Our columns of a published figure, each with its name in the table of published figures.
PUBLISHED = {
    "published": "top1",
    "published_std": "top1_std",
    "published_top5": "top5",
    "published_recipe": "recipe",
}
# Networks are 1 apart; how far apart their methods stand at most, and how much room they have together.
WIDEST_STEP, ROOM = 0.2, 0.8


@dataclass(frozen=True, kw_only=True)
class MethodComparison(TrainingExperiment):
    """Networks x activations x methods. An option that is not given takes the recipe's value.

    In the Conv networks irnet takes the Kaiming scale of the other methods, so that they differ in their signs and
    gradients alone (see recipe.py); its own scale is an option.
    """

    name = "method_comparison"
    about = "Compare methods on several networks, beside the published accuracies."
    claim = (
        "on CIFAR-10 bi-half is the most accurate of the three at every depth (Conv2/4/6/8: 79.25, 87.68, 89.92, "
        "90.40 %), then IR-Net (78.32 to 90.06 %), then sign (77.86 to 89.17 %), each a mean of 5 trials"
    )
    recipes: ClassVar = {
        "quick": Recipe("digits", ("conv2", "conv4"), FULL, 5, 4, QUICK, OF_METHOD),
        "paper": Recipe("cifar10", ("conv2", "conv4", "conv6", "conv8"), FULL, 5, 100, PAPER, OF_METHOD, OF_MODEL),
    }
    lists_runs = True
    lists_others: ClassVar[bool] = False
    """whether what is published of other methods stands in the table too"""

    activations: list[str] = field(default_factory=list)
    """real (W/A 1/32), binary (1/1), or both (default: the recipe's)"""
    block: str | None = None
    """what stands around layers with binary input, for networks with binary activations: norm-first, in which a scale
    counts, real-to-binary, bi-real or reactnet, as the command train has it; '' is the network's own (default: the
    recipe's)"""
    irnet_scale: Literal["", "kaiming", "power-of-two"] = ""
    """kaiming: the scale of the other methods; power-of-two: IR-Net's own, near 1, with which networks without batch
    norm, as conv2, learn little (default: the recipe's)"""
    tune: bool = False
    """choose learning rate and weight decay of each arm (network x method) by the same grid, on a tenth of the training
    images held out, with seeds that no trial has; the trials then run with the arm's best"""
    tune_lrs: list[float] = field(default_factory=lambda: [0.03, 0.1, 0.3, 1.0])
    """learning rates of the grid of --tune"""
    tune_weight_decays: list[float] = field(default_factory=lambda: [1e-4, 5e-4])
    """weight decays of the grid of --tune"""
    tune_trials: int = 2
    """runs of each point of the grid of --tune"""
    out: str = "runs/method_comparison"
    """folder for runs, results.csv (a row a run), tables, figure and curves"""

    def runs(self) -> list[Run]:
        """The trials of all arms, as they are without tuning. Raises ValueError, naming the option at fault."""
        return self.runs_of(self._own)

    def tuning_runs(self) -> list[Run]:
        """The runs that the tuning looks at: every point of the grid for each arm. Raises ValueError as `runs`."""
        if not 1 <= self.tune_trials <= MOST_TRIALS:
            raise ValueError(f"tune_trials must lie in 1 to {MOST_TRIALS:,}, not {self.tune_trials}")
        # Past every seed that a trial may have, so that more trials later find the same choice made.
        apart = replace(self, trials=self.tune_trials, seed=self.seed + MOST_TRIALS)

        tried = zip(TUNED, (self.tune_lrs, self.tune_weight_decays), strict=True)
        grid = [[{name: value} for value in values] for name, values in tried]
        return apart.runs_of(lambda method: Grid(self._own(method), *grid, [{"holdout": HOLDOUT}]))

    def _own(self, method: str) -> list[dict[str, Any]]:
        scale = {"scale": self.irnet_scale} if method == "irnet" and self.irnet_scale else {}
        every = words(self.activations) or self.chosen_recipe().varied.get("activations", ("real",))
        block = {} if self.block is None else {"block": self.block}
        return [{**scale, "activations": each, **(block if each != "real" else {})} for each in every]

    def results(self, out: Path, callbacks: Iterable[Callback] = ()) -> Results:
        """Those of the trials, after `tune` where that is asked for; its grid is left as `tuning.csv`."""
        runs = self.runs()
        if self.tune:
            runs, scores = tune(runs, self.tuning_runs(), out, self)
            write_csv(out / "tuning.csv", scores.to_dict("records"))
            show(f"tuning:   {out / 'tuning.csv'}")
        run_all(runs, out, self, callbacks=callbacks)
        return Results(out, runs)

    def outcome(self, results: Results) -> Outcome:
        frame = pd.DataFrame(results.records)
        rows = rows_of(frame)
        others = published_elsewhere(rows) if self.lists_others else []
        return Outcome(
            rows=[*rows, *others],
            figure=draw(frame),
            curves=curves_of(frame),
            finding=finding_of(rows),
            note=recipes_told([*rows, *others]),
        )


def tune(
    runs: list[Run], tuning: list[Run], out: Path, options: EngineOptions | None = None
) -> tuple[list[Run], pd.DataFrame]:
    """Do what is missing of the tuning runs below `out`, then give each of `runs` the values that are best for its arm.

    Returns these runs, and the grid as `tuning_scores` has it.
    """
    run_all(tuning, out, options)
    scores = tuning_scores(read_records(out, tuning))
    chosen = {
        tuple(row[name] for name in ARM): {name: row[name] for name in TUNED}
        for row in scores[scores["chosen"]].to_dict("records")
    }
    return [replace(run, **chosen[tuple(getattr(run, name) for name in ARM)]) for run in runs], scores


def tuning_scores(records: list[dict[str, Any]]) -> pd.DataFrame:
    """A row for each arm and point of the grid: runs, diverged, the mean validation top-1 in percent, `chosen` or not.

    A diverged run counts as 0 %. Of equal points the one that comes first among the records is chosen.
    """
    frame = pd.DataFrame(records).reindex(columns=[*ARM, *TUNED, "validation_top1"])
    points = frame.assign(validation_top1=frame["validation_top1"].fillna(0), diverged=frame["validation_top1"].isna())
    scores = (
        points.groupby([*ARM, *TUNED], sort=False)
        .agg(runs=("diverged", "size"), diverged=("diverged", "sum"), validation_top1=("validation_top1", "mean"))
        .reset_index()
    )
    best = scores.groupby(list(ARM), sort=False)["validation_top1"].idxmax()
    return scores.assign(chosen=scores.index.isin(best))


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each network and method: its settings, test top-1 in percent over the trials, and the published one.

    frame: the records of runs. model: as `networks_of` calls it. mean and std (of a sample) are of the last epoch, top5
    likewise; difference (in points), pairs and p (paired t test over equal seeds) are against
    `statistics.reference_of`. The published figures, and the recipe that they are of, are there where data, network and
    method are those of the paper's Table 2 or 3.
    """
    frame = frame.assign(model=networks_of(frame))
    frame["test_top5"] = frame.get("test_top5", np.nan)
    settings = frame.groupby(["model", "data", "method"], sort=False)[["scale", "lr", "weight_decay"]].first()
    settings["top5"] = frame.groupby(["model", "data", "method"], sort=False)["test_top5"].mean()
    table = settings.merge(compare(frame, reference_of(frame)), on=["model", "data", "method"])
    known = {
        (dataset, network, OUR_NAMES.get(method, method)): figures
        for (dataset, network, method), figures in _published().items()
    }
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
    """Further rows: what is published of other methods on the networks and data of these, by their published names."""
    ours = {row["method"] for row in rows}
    return [
        {"model": model, "data": data, "method": method} | figures
        for model, data in dict.fromkeys((row["model"], row["data"]) for row in rows)
        for (dataset, network, method), figures in _published().items()
        if (dataset, network) == (PUBLISHED_DATA.get(short_data(data)), model)
        and OUR_NAMES.get(method, method) not in ours
    ]


def recipes_told(rows: list[dict[str, Any]]) -> str:
    """One line: each recipe that published figures of these rows are of, and whose; empty where there are none."""
    methods: dict[str, list[str]] = {}
    for row in rows:
        if not pd.isna(row["published"]) and row["method"] not in methods.setdefault(row["published_recipe"], []):
            methods[row["published_recipe"]].append(row["method"])
    told = "; ".join(f"{recipe} ({', '.join(of)})" for recipe, of in methods.items())
    return f"recipes of the published figures: {told}" if told else ""


def _published() -> dict[tuple[str, str, str], dict[str, Any]]:
    """What is published, as `PUBLISHED`, by data set, network as `networks_of` has it, and published name."""
    return {
        (row["dataset"], _our_name(row["model"], row["bits_w_a"]), row["method"]): {
            name: row[column] for name, column in PUBLISHED.items()
        }
        for row in published().to_dict("records")
        if row["table"] in PUBLISHED_TABLES
    }


def _our_name(model: str, bits: str) -> str:
    # Full precision stands beside the 1/1 networks that it is there to be compared with.
    return model.lower().replace("-", "") + ("" if bits == "1/32" else " 1/1")


def curves_of(frame: pd.DataFrame) -> Curves:
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


def finding_of(rows: list[dict[str, Any]]) -> str:
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


def draw(frame: pd.DataFrame) -> Figure:
    """Test top-1 of each method by network: every trial, mean and deviation; published figures hollow (Table 2)."""
    rows = pd.DataFrame(rows_of(frame))
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
        style: dict[str, Any] = {"color": colour, "markersize": 6}
        draw_spread(panel, at, table, fmt="o", capsize=4, label=method, **style)
        style |= {"markerfacecolor": "none", "alpha": 0.8, "capsize": 3}
        panel.errorbar(at + step / 4, table["published"], table["published_std"], fmt="D", **style)
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
    figure.supxlabel(f"{of_trials(count)}; small dots: every trial", **FOOTNOTE)
    return figure


if __name__ == "__main__":
    run_command(MethodComparison.main)

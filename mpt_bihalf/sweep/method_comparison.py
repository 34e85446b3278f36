"""The grid of a comparison of networks and methods, and the same tuning for each of its arms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ..endings import show
from ..files import output_folder, write_csv
from ..recipes import METHOD_COMPARISON
from ..training import Run
from .engines import EngineOptions
from .experiment import MOST_TRIALS, Experiment, Grid, words
from .records import read_records
from .run_all import run_all

TUNED = ("lr", "weight_decay")
ARM = ("model", "activations", "method")
# Share of the training images that a tuning run does without, to be chosen on.
HOLDOUT = 0.1


@dataclass(frozen=True, kw_only=True)
class MethodComparison(Experiment):
    """Networks x activations x methods. An option that is not given takes the recipe's value.

    In the Conv networks irnet takes the Kaiming scale of the other methods, so that they differ in their signs and
    gradients alone (see recipes.py); its own scale is an option.
    """

    recipes = METHOD_COMPARISON

    activations: list[str] = field(default_factory=list)
    """real (W/A 1/32), binary (1/1), or both (default: the recipe's)"""
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
        return [{**scale, "activations": activations} for activations in every]


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


def compare_methods(options: MethodComparison) -> tuple[Path, list[dict[str, Any]]]:
    """Do what is missing of a comparison, after its tuning if that is asked for: its folder, and the trials' records.

    The grid of the tuning is left as `tuning.csv`.
    """
    out = output_folder(options.out)
    runs = options.runs()
    if options.tune:
        runs, scores = tune(runs, options.tuning_runs(), out, options)
        write_csv(out / "tuning.csv", scores.to_dict("records"))
        show(f"tuning:   {out / 'tuning.csv'}")
    run_all(runs, out, options)
    return out, read_records(out, runs)

"""How the variance of activations goes through the layers, before and after training, of the runs of a sweep."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from ..data import Dataset
from ..endings import run_command
from ..parametrization import binary_layers
from ..report.figures import COLOURS
from ..report.outcome import Outcome
from ..sweep import find_runs
from ..training import Callback, Run
from ..training.build import build_model
from ..training.finished import evaluate_test
from .experiment import Experiment
from .results import Results

SETTING = ("method", "scale", "scope", "prune_rate", "lr", "seed")
ARM = ["method", "scale"]


@dataclass(frozen=True, kw_only=True)
class ActivationVariance(Experiment):
    """Which runs to look at."""

    name = "activation_variance"
    about = "Variance of each binary layer's output, before and after training."
    claim = (
        "with one scale of sqrt(2/D) a layer, by He et al. (2015), binary weights keep the variance near 1 through the "
        "layers, a factor of 1 from one to the next; without it the factor is D/2, and gradients explode"
    )

    out: str = "runs/prune_sweep"
    """folder of a sweep whose finished runs have their checkpoints still; the table goes there too"""

    def results(self, out: Path, callbacks: Iterable[Callback] = ()) -> Results:
        """Those of the runs that lie there."""
        return Results(out, find_runs(out))

    def outcome(self, results: Results) -> Outcome:
        if not results.finished:
            raise ValueError(f"no finished run lies in {self.out}")
        rows = []
        for run in tqdm(results.finished, unit="run", disable=None):
            found = results.network(run)
            if found is None:
                continue
            model, dataset = found
            start = build_model(run, dataset).to(dataset.device)
            for when, network in (("start", start), ("end", model)):
                rows.append(row_of(run, when, layer_variances(network, dataset)))
        if not rows:
            raise ValueError(f"no finished run in {self.out} has its checkpoint still")
        # The curves that may be in this folder are those of the experiment whose runs these are.
        return Outcome(rows=rows, figure=draw(rows), curves=None, finding=finding_of(rows))


class Variance:
    """A hook: the variance of all that a module has given, over images, channels and positions."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.double()
        self.count += values.numel()
        self.sum += values.sum().item()
        self.squares += values.square().sum().item()

    def value(self) -> float:
        return self.squares / self.count - (self.sum / self.count) ** 2


def layer_variances(model: nn.Module, dataset: Dataset) -> dict[str, float]:
    """The variance of what each binarized layer gives, ahead of any activation, over the test images."""
    variances = {name: Variance() for name, *_ in binary_layers(model)}
    hooks = [model.get_submodule(name).register_forward_hook(variance) for name, variance in variances.items()]
    evaluate_test(model, dataset)
    for hook in hooks:
        hook.remove()
    return {name: variance.value() for name, variance in variances.items()}


def row_of(run: Run, when: str, variances: dict[str, float]) -> dict[str, Any]:
    """`a layer` is the factor from one layer to the next: the geometric mean from the first to the last."""
    setting = {name: getattr(run, name) for name in SETTING}
    values = list(variances.values())
    factor = (values[-1] / values[0]) ** (1 / (len(values) - 1)) if len(values) > 1 and values[0] else nan
    return {**setting, "when": when, "a layer": factor, **variances}


def finding_of(rows: list[dict[str, Any]]) -> str:
    """One line: the factor from one layer to the next by method and scale, before and after training."""
    factors = pd.DataFrame(rows).dropna(subset=["a layer"])
    told = []
    for (method, scale), runs in factors[factors["a layer"] > 0].groupby(ARM, sort=False):
        means = np.exp(np.log(runs["a layer"]).groupby(runs["when"]).mean())
        count = int(runs["when"].value_counts().max())
        parts = [f"{means[when]:.3g} at the {when}" for when in ("start", "end") if when in means]
        told.append(f"{method}, scale {scale}: {', '.join(parts)} ({count} run{'s' * (count != 1)})")
    if not told:
        return "no network has several layers whose output varies"
    return f"factor of the variance from one layer to the next, a geometric mean: {'; '.join(told)}"


def draw(rows: list[dict[str, Any]]) -> Figure:
    """The variance of each layer's output in the order of the network, a line a run: dashes before training."""
    figure = Figure(figsize=(6.5, 4.4), layout="constrained")
    panel = figure.subplots()
    arms = list(dict.fromkeys(tuple(row[name] for name in ARM) for row in rows))
    for row in rows:
        variances = [value for name, value in row.items() if name not in (*SETTING, "when", "a layer")]
        colour = COLOURS[arms.index(tuple(row[name] for name in ARM)) % len(COLOURS)]
        style = "--" if row["when"] == "start" else "-"
        panel.plot(range(1, len(variances) + 1), variances, style, color=colour, alpha=0.6, linewidth=1)
    for arm, colour in zip(arms, cycle(COLOURS), strict=False):
        panel.plot([], [], color=colour, label=", ".join(arm))
    for when, style in (("start", "--"), ("end", "-")):
        panel.plot([], [], style, color="0.3", label=f"at the {when}")
    panel.axhline(1, color="0.7", linestyle=":", zorder=0)
    panel.set(xlabel="binary layer, in the order of the network", ylabel="variance of its output", yscale="log")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    run_command(ActivationVariance.main)

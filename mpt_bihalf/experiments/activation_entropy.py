"""The entropy of each channel's activations in a 1/1 network (Fig. 1b)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..activations import BinaryActivation
from ..data import short_data
from ..endings import run_command
from ..measures import bernoulli_entropy
from ..report.figures import FOOTNOTE, method_colours
from ..report.outcome import Curves, Outcome
from ..report.statistics import TOP1
from ..report.traces import RUN, SETTING, compare_methods, draw_places, summarise_runs, tell_differences, tell_places
from ..training import Run
from ..training.build import check_network
from ..training.finished import activation_shares
from ..training.record import ACTIVATIONS
from .experiment import TrainingExperiment
from .recipe import CIFAR100, FULL, PAPER, SMALL, Recipe
from .results import Results

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ActivationEntropy(TrainingExperiment):
    """Trainings with binary activations. An option that is not given takes the recipe's value."""

    name = "activation_entropy"
    about = "Measure the entropy of each channel's binary activations over the test images."
    claim = (
        "in a 1/1 ResNet-18 on CIFAR-100 the activations of each channel under bi-half are close to one bit of "
        "entropy, above those under sign and IR-Net"
    )
    recipes: ClassVar = {
        "quick": Recipe("digits", ("resnet18",), FULL, 3, 5, {**SMALL, "activations": "binary"}),
        "paper": Recipe("cifar100", ("resnet18",), FULL, 5, 350, {**PAPER, **CIFAR100, "activations": "binary"}),
    }
    needs = (ACTIVATIONS,)
    lists_runs = True

    layer: str = ""
    """one binary activation to look at, by name (default: all)"""
    out: str = "runs/activation_entropy"
    """folder for runs, results.csv, table, figure and curves"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        runs = self.runs_of()
        for run in {run.model: run for run in runs}.values():
            layers = [name for name, part in check_network(run).named_modules() if isinstance(part, BinaryActivation)]
            if self.layer and self.layer not in layers:
                raise ValueError(f"{run.model} has no binary activation {self.layer!r}; it has {', '.join(layers)}")
        return runs

    def outcome(self, results: Results) -> Outcome:
        shares = results.look_again(activation_shares, results.finished, "activations")
        channels = per_channel(results.records, shares, self.layer)
        rows = rows_of(results.records, channels)
        return Outcome(rows=rows, figure=draw(channels), curves=curves_of(channels), finding=finding_of(rows))


def per_channel(records: list[Row], shares: dict[str, pd.DataFrame], layer: str = "") -> pd.DataFrame:
    """A row for each run, layer and channel: the run's `RUN` fields, layer, channel, entropy in bits.

    records: of runs. shares: by run, as `training.finished.activation_shares` has them. layer: the only one to count.
    """
    frames = [
        shares[record["run"]].assign(**{name: record[name] for name in RUN})
        for record in records
        if record["run"] in shares
    ]
    columns = [*RUN, "layer", "channel", "entropy"]
    if not frames:
        return pd.DataFrame(columns=columns, dtype=float)
    channels = pd.concat(frames, ignore_index=True)
    channels["entropy"] = bernoulli_entropy(torch.tensor(channels["share"].to_numpy(float))).numpy()
    return channels[channels["layer"] == layer][columns] if layer else channels[columns]


def rows_of(records: list[Row], channels: pd.DataFrame) -> list[Row]:
    """A row for each network, data set and method, as `compare_methods` has it, of the mean entropy over the channels.

    lowest: the lowest tenth of the channels has at most so many bits. constant: share of the channels, in percent, that
    never change. Both are means over the trials, as is the test top-1 in percent.
    """
    columns = ["entropy", "lowest", "constant"]
    runs = summarise_runs(records, channels, _summary, columns)
    runs[TOP1] = pd.DataFrame(records).get(TOP1, np.nan)

    def further(trials: pd.DataFrame) -> Row:
        return {name: trials[name].mean() for name in ("lowest", "constant", TOP1)}

    return compare_methods(runs, "entropy", further)


def _summary(channels: pd.DataFrame) -> Row:
    entropy = channels["entropy"]
    return {"entropy": entropy.mean(), "lowest": entropy.quantile(0.1), "constant": 100 * (entropy == 0).mean()}


def curves_of(channels: pd.DataFrame) -> Curves:
    """For TensorBoard: the mean over the trials by channel, from the lowest to the highest, and by layer in order."""
    curves: Curves = {}
    for (model, data, method), trials in channels.groupby(SETTING, sort=False):
        name = f"{model}-{short_data(data)}-{method}"
        curves[f"by_channel/{name}"] = list(enumerate(_ranked(trials).tolist()))
        curves[f"by_layer/{name}"] = list(enumerate(trials.groupby("layer", sort=False)["entropy"].mean().tolist()))
    return curves


def finding_of(rows: list[Row]) -> str:
    """One line: whose activations have how many bits, and whose channels never change."""
    return tell_places(rows, _tell)


def _tell(rows: list[Row]) -> str:
    parts = [f"bits of entropy of a channel: {tell_differences(rows, 'entropy', 3)}"]
    constant = [f"{row['method']} {row['constant']:.1f} %" for row in rows if row["constant"]]
    return "; ".join([*parts, *([f"channels that never change: {', '.join(constant)}"] if constant else [])])


def draw(channels: pd.DataFrame) -> Figure:
    """For each network the channels from the lowest to the highest entropy (Fig. 1b), and the mean of each layer."""
    several = channels["layer"].nunique() > 1
    figure, places = draw_places(channels, 1 + several, 11 if several else 6.5, 4.4)
    colours = method_colours(channels["method"])
    for part, panels, name in places:
        for method, trials in part.groupby("method", sort=False):
            ranked = _ranked(trials)
            percent = 100 * (np.arange(len(ranked)) + 0.5) / len(ranked)
            panels[0].plot(percent, ranked, color=colours[method], label=method)
        layer = "all layers" if several else f"layer {part['layer'].iloc[0]}"
        panels[0].set(
            title=f"{name}: {layer}",
            xlabel="channels, from the lowest entropy (%)",
            ylabel="entropy of the activations of a channel (bits)",
        )
        if several:
            _draw_layers(panels[1], part, colours)
            panels[1].set(title=f"{name}: mean over the channels of a layer", ylabel="entropy of a channel (bits)")
        for panel in panels:
            panel.set_ylim(-0.03, 1.03)
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small", loc="lower right")
    trials = channels["seed"].nunique()
    figure.supxlabel(f"means over {trials} trial{'s' * (trials != 1)}", **FOOTNOTE)
    return figure


def _draw_layers(panel: Axes, part: pd.DataFrame, colours: dict[str, str]) -> None:
    names = list(part["layer"].unique())
    for method, trials in part.groupby("method", sort=False):
        means = trials.groupby("layer", sort=False)["entropy"].mean().loc[names]
        panel.plot(range(len(names)), means, "o-", color=colours[method], label=method)
    panel.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize="x-small")
    panel.set_xlabel("binary activation, in the order of the network")


def _ranked(trials: pd.DataFrame) -> np.ndarray:
    """Entropies from the lowest to the highest, a mean over the trials at each rank."""
    return np.mean([np.sort(channels) for _, channels in trials.groupby("seed")["entropy"]], axis=0)


if __name__ == "__main__":
    run_command(ActivationEntropy.main)

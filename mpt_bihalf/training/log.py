"""What a run tells: figures of an epoch, measures of each layer, TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from .. import measures
from ..weights import binary_layers, binary_weights

Figures = dict[str, Any]


class LayerLog:
    """Measures of each binarized layer, once an epoch, with what changed since the epoch before."""

    def __init__(self, model: nn.Module) -> None:
        self._before = _signs(model)

    def measure(self, model: nn.Module, epoch: int) -> list[Figures]:
        """A row of figures for each layer: entropies in bits, shares in [0, 1], flips counted since the last call."""
        names, values = [], []
        now = _signs(model)
        for name, binary in now.items():
            flips = measures.flips(self._before[name], binary)
            figures = {
                "entropy": measures.entropy(binary),
                "filter_entropy": measures.filter_entropy(binary).mean(),
                "positive_share": measures.positive_share(binary),
                "kept": measures.kept_share(binary),
                "flips_to_positive": flips.to_positive,
                "flips_to_negative": flips.to_negative,
                "mask_change": measures.mask_change(self._before[name], binary),
            }
            names.append(name)
            values.append(torch.stack([value.float() for value in figures.values()]))
        read = torch.stack(values).tolist() if values else []  # the device is waited for once
        rows = [
            {"epoch": epoch, "layer": name, "weights": now[name].numel(), **dict(zip(figures, row, strict=True))}
            for name, row in zip(names, read, strict=True)
        ]
        self._before = now
        return rows


def _signs(model: nn.Module) -> dict[str, Tensor]:
    return {name: binary.to(torch.int8) for name, binary in binary_weights(model).items()}


class Trace:
    """Measures of each binarized layer every so many steps of an epoch, and at its end; none with `every` = 0.

    Flips are counted at each step, so that a weight that flips and flips back counts twice. Nothing waits for the
    device before `rows`.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        self._layers = list(binary_layers(model)) if every else []
        self._every, self._steps = every, 0
        self._before = {name: part.binary(weight) for name, part, weight in self._layers}
        self._flips: dict[str, Tensor] = {}
        self._seen: list[tuple[int, str, int, int, Tensor]] = []

    @torch.no_grad()
    def look(self, step: int, last: bool) -> None:
        """After training step `step`, counted over the run from 1; `last` of its epoch."""
        self._steps += 1
        due = last or self._steps == self._every
        for name, part, weight in self._layers:
            binary = part.binary(weight)
            flips = torch.stack(
                [
                    *measures.flips(self._before[name], binary),
                    *measures.flips(self._before[name][:1], binary[:1]),
                ]
            )
            self._flips[name] = self._flips[name] + flips if name in self._flips else flips
            self._before[name] = binary
            if due:
                trained = weight if part.scores is None else part.scores
                values = torch.stack([*_state(binary, weight, trained), *self._flips.pop(name).float()])
                self._seen.append((step, name, weight.numel(), weight[0].numel(), values))
        if due:
            self._steps = 0

    def rows(self, epoch: int) -> list[Figures]:
        """A row for each layer and step looked at since the last call."""
        read = torch.stack([values for *_, values in self._seen]).tolist() if self._seen else []
        rows = [
            {"step": step, "epoch": epoch, "layer": name, "weights": size, "connections": connections}
            | dict(zip(TRACED, values, strict=True))
            for (step, name, size, connections, _), values in zip(self._seen, read, strict=True)
        ]
        self._seen = []
        return rows


# What a trace records, beside the weights of a layer and the connections of each of its filters. Entropies in bits and
# shares of +1 are of the kept weights of a filter: mean, deviation, lowest, highest over the filters. Latent magnitude:
# mean abs W. Cut-off: mean over the filters of its magnitude. Gradient magnitude: mean abs gradient of what is trained.
# Flips: of the layer, and of its first filter alone.
TRACED = (
    "filter_entropy",
    "filter_entropy_std",
    "filter_share_lowest",
    "filter_share_highest",
    "latent_magnitude",
    "cut_off",
    "gradient_magnitude",
    "flips_to_positive",
    "flips_to_negative",
    "first_filter_to_positive",
    "first_filter_to_negative",
)


def _state(binary: Tensor, weight: Tensor, trained: Tensor) -> list[Tensor]:
    """The first seven of `TRACED`."""
    entropy, share = measures.filter_entropy(binary), measures.filter_positive_share(binary)
    gradient = torch.zeros_like(entropy[0]) if trained.grad is None else trained.grad.abs().mean()
    return [
        entropy.mean(),
        entropy.std(correction=0),
        share.amin(),
        share.amax(),
        weight.abs().mean(),
        measures.cut_off(weight, binary).abs().mean(),
        gradient,
    ]


class Curves:
    """TensorBoard curves of a run, in its folder. A resumed run goes on from `first_epoch`: later points go.

    Those of a trace, which count steps from `first_step`, lie in `trace` below it.
    """

    def __init__(self, folder: Path, first_epoch: int, first_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)
        self._folder, self._first_step = folder / "trace", first_step
        self._trace: SummaryWriter | None = None

    def add(self, figures: Figures, layers: list[Figures], trace: list[Figures], lr: float) -> None:
        epoch = figures["epoch"]
        for name, value in figures.items():
            if name != "epoch":
                split, measure = name.split("_", 1)
                self._writer.add_scalar(f"{measure}/{split}", value, epoch)
        self._writer.add_scalar("learning_rate", lr, epoch)
        for row in layers:
            for name, value in row.items():
                if name not in ("epoch", "layer", "weights"):
                    self._writer.add_scalar(f"{name}/{row['layer']}", value, epoch)
        self._writer.flush()
        if trace and self._trace is None:
            self._trace = SummaryWriter(str(self._folder), purge_step=self._first_step)
        if self._trace:
            for row in trace:
                for name in TRACED:
                    self._trace.add_scalar(f"{name}/{row['layer']}", row[name], row["step"])
            self._trace.flush()

    def close(self) -> None:
        self._writer.close()
        if self._trace:
            self._trace.close()

"""What a run tells: measures of each layer, by epoch and by step."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from .. import measures
from ..parametrization import binary_layers, one_pass

Figures = dict[str, Any]
# The status of a result; that of a run that diverged says why, after it.
FINISHED, DIVERGED = "finished", "diverged"
RESULT = "result.json"


class LayerLog:
    """Measures of each binarized layer, once an epoch, with what changed since the epoch before."""

    def __init__(self, model: nn.Module) -> None:
        with one_pass(model):
            self.signs = {name: part.binary(weight).to(torch.int8) for name, part, weight in binary_layers(model)}
        """B of each layer at the last call of `measure`, int8"""

    def measure(self, model: nn.Module, epoch: int) -> list[Figures]:
        """A row of figures for each layer: entropies in bits, shares in [0, 1], flips counted since the last call."""
        before, self.signs = self.signs, LayerLog(model).signs
        measured = [measures.changes(before[name], binary) for name, binary in self.signs.items()]
        read = torch.stack(measured).tolist() if measured else []  # the device is waited for once
        return [
            {"epoch": epoch, "layer": name, "weights": self.signs[name].numel()} | dict(zip(MEASURED, row, strict=True))
            for name, row in zip(self.signs, read, strict=True)
        ]


MEASURED = (
    "entropy",
    "filter_entropy",
    "positive_share",
    "kept",
    "flips_to_positive",
    "flips_to_negative",
    "mask_change",
)


class Trace:
    """Measures of each binarized layer every so many steps of an epoch, and at its end; none with `every` = 0.

    Flips are counted at each step, so that a weight that flips and flips back counts twice. Nothing waits for the
    device before `rows`. steps: those of an epoch.
    """

    def __init__(self, model: nn.Module, every: int, steps: int) -> None:
        self._model, self._layers = model, list(binary_layers(model)) if every else []
        self._every, self._steps = every, steps
        self._before = [part.binary(weight) for _, part, weight in self._layers]
        device = self._before[0].device if self._before else None
        self.flips = torch.zeros(len(self._layers), 4, dtype=torch.int64, device=device)
        """since the last step looked at, of each layer: of the layer to +1, to -1, of its first filter to +1, to -1"""
        self.seen: list[Tensor] = []
        """`TRACED` of each step looked at in this epoch and each layer, float32 [11]"""

    @torch.no_grad()
    def look(self, step: int) -> None:
        """After training step `step` of the epoch, counted from 1."""
        if not self._layers:
            return
        with one_pass(self._model):
            signs = [part.binary(weight) for _, part, weight in self._layers]
        for index, (_, part, weight) in enumerate(self._layers):
            before, binary = self._before[index], signs[index]
            self._before[index] = binary
            self.flips[index] += torch.stack([*measures.flips(before, binary), *measures.flips(before[:1], binary[:1])])
            if self._due(step):
                trained = weight if part.scores is None else part.scores
                self.seen.append(torch.stack([*_state(binary, weight, trained), *self.flips[index].float()]))
                self.flips[index] = 0

    def rows(self, epoch: int) -> list[Figures]:
        """A row for each step looked at in this epoch and each layer; `epoch` is counted from 1."""
        read = torch.stack(self.seen).tolist() if self.seen else []
        due = filter(self._due, range(1, self._steps + 1)) if self._layers else ()
        rows = [
            {"step": (epoch - 1) * self._steps + step, "epoch": epoch, "layer": name}
            | {"weights": weight.numel(), "connections": weight[0].numel()}
            | dict(zip(TRACED, values, strict=True))
            for (step, (name, _, weight)), values in zip(product(due, self._layers), read, strict=True)
        ]
        self.seen = []
        return rows

    def looks(self, step: int) -> int:
        """How many entries `seen` has after this step of the epoch."""
        return len(self._layers) * sum(map(self._due, range(1, step + 1))) if self._layers else 0

    def _due(self, step: int) -> bool:
        return step % self._every == 0 or step == self._steps


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

"""What rounding does to the training of a 1/1 network, with scales on weights and on outputs.

A layer with binary inputs sums whole numbers, of which many are 0; with the scale on its weight they come out as noise.
Of the first step this tells the share of sums that are 0, and of those the share that are not 0 in what the layer has.

Then the same network is trained twice on the same images, in channels-last and in contiguous memory, which is the same
but for the order of sums: how far the gradients of the first step are apart, relative to their norm, and what share of
all binary weights differ after the last. In float32 the first layer, of real inputs, and batch norms round too, and a
sign that falls the other way there turns others behind it; in float64 next to none does.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from measuring import show
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mpt_bihalf import binary_weights
from mpt_bihalf.commandline import parse
from mpt_bihalf.data import Dataset, load_dataset, training_batches
from mpt_bihalf.endings import run_command
from mpt_bihalf.output_scale import is_on_output, split
from mpt_bihalf.training.build import build
from mpt_bihalf.training.config import Run
from mpt_bihalf.training.step import train_step
from mpt_bihalf.weights import SCALE_ON

LAYOUTS = torch.channels_last, torch.contiguous_format


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What to train."""

    models: list[str] = field(default_factory=lambda: ["conv4", "resnet18"])
    """networks"""
    widths: list[float] = field(default_factory=lambda: [0.5, 0.125])
    """what their hidden channels are multiplied by, of each network"""
    methods: list[str] = field(default_factory=lambda: ["sign", "bihalf", "mpt-sign", "mpt-bihalf"])
    """methods"""
    data: str = "digits"
    """data set"""
    batch_size: int = 64
    """images a step"""
    steps: int = 78
    """steps of each training"""
    trials: int = 5
    """trainings of each kind, seeds from 0 on; figures are means"""
    json: bool = False
    """print JSON"""


def batches(dataset: Dataset, run: Run, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches of the run, of as many epochs as it takes."""
    epoch, left = 0, steps
    while left:
        for x, y in training_batches(dataset, run.batch_size, run.seed, epoch):
            if not left:
                return
            left -= 1
            yield x, y
        epoch += 1


class Zeros:
    """Counts, of layers with binary inputs, sums that are 0, and those of them that are not in what the layer gives."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.sums = self.zeros = self.noise = 0
        self.handles = [model.get_submodule(name).register_forward_hook(self.count) for name in names]

    def count(self, layer: Any, args: tuple[Tensor, ...], y: Tensor) -> None:
        with torch.no_grad():
            binary, _ = split(layer.weight)
            if isinstance(layer, nn.Linear):
                z = F.linear(args[0], binary)
            else:
                z = F.conv2d(args[0], binary, None, layer.stride, layer.padding, layer.dilation, layer.groups)
            zero = z.round() == 0
            self.sums += zero.numel()
            self.zeros += int(zero.sum())
            self.noise += int((y[zero] != 0).sum())

    def end(self) -> dict[str, float]:
        noise = 100 * self.noise / max(self.zeros, 1)
        return {"sums of 0, %": 100 * self.zeros / self.sums, "of these not 0, %": noise}

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def measured(run: Run, dataset: Dataset, names: list[str], steps: int) -> dict[str, float]:
    """names: the layers with binary inputs."""
    figures: dict[str, float] = {}
    for dtype, name in ((torch.float32, "fp32"), (torch.float64, "fp64")):
        gradients, bits = [], []
        for layout in LAYOUTS:
            model, optimizer = build(run, dataset)
            model.to(dtype)
            zeros = Zeros(model, names)
            for step, (x, y) in enumerate(batches(dataset, run, steps)):
                train_step(model, optimizer, x.to(dtype).contiguous(memory_format=layout), y)
                if step == 0:
                    gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
                    figures |= figures or zeros.end()
                    zeros.remove()
            bits.append(torch.cat([binary.flatten() for binary in binary_weights(model).values()]))
        apart = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
        figures[f"gradients apart, {name}"] = apart
        figures[f"B apart after {steps}, {name}, %"] = 100 * float((bits[0] != bits[1]).float().mean())
    return figures


def main() -> None:
    options = parse(Rounding, "What rounding does to 1/1 networks, with scales on weights and on outputs.")
    if len(options.models) != len(options.widths):
        raise ValueError("--widths takes one of each network")
    dataset, rows = load_dataset(options.data), []
    kinds = [
        (model, width, method)
        for model, width in zip(options.models, options.widths, strict=True)
        for method in options.methods
    ]
    for model, width, method in tqdm(kinds, unit="kind", leave=False, disable=None):
        settings: dict[str, Any] = {"model": model, "width": width, "method": method, "activations": "binary"}
        settings |= {"data": options.data, "batch_size": options.batch_size}
        on_output, _ = build(Run(**settings), dataset)
        names = [name for name, module in on_output.named_modules() if is_on_output(module)]
        for scale_on in reversed(SCALE_ON):
            trials = [
                measured(Run(**settings, scale_on=scale_on, seed=seed), dataset, names, options.steps)
                for seed in range(options.trials)
            ]
            means = {figure: statistics.mean(trial[figure] for trial in trials) for figure in trials[0]}
            rows.append({"model": model, "method": method, "scale on": scale_on, **means})
    show(rows, options.json)


if __name__ == "__main__":
    run_command(main)

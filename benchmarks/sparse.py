"""Layers by what their weights keep against torch's: forward, gradient of the input, gradient of the weight.

Each number is how many times as long torch takes, in the faster of its two layouts, for the same weights and images:
the median over rounds in turn. Ours begins with making the lists, as each training step does, and is given images side
by side, as the layer before leaves them. Beside it stands SparseProp (pip install sparseprop), where it is installed:
its forward pass and both gradients together, of the kept weights alone.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from measuring import in_turn, median_ratio, show
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import sparse
from mpt_bihalf.commandline import parse
from mpt_bihalf.devices import keep_freed_memory
from mpt_bihalf.endings import run_command
from mpt_bihalf.images_last import images_last

# Channels, filters, pixels a side, of 3x3 convolutions; inputs and outputs of a linear layer.
LAYERS = {
    "64-64@32": (64, 64, 32),
    "64-128@16": (64, 128, 16),
    "128-128@16": (128, 128, 16),
    "256-256@8": (256, 256, 8),
    "512-512@4": (512, 512, 4),
    "16384-256": (16384, 256),
}
PASSES = ["forward", "to input", "to weight"]


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """Which layers to time."""

    layers: list[str] = field(default_factory=lambda: [*LAYERS])
    """layers: channels-filters@pixels of a 3x3 convolution, or inputs-outputs of a linear one"""
    rates: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.8, 0.9, 0.95])
    """fractions pruned"""
    batches: list[int] = field(default_factory=lambda: [128])
    """images"""
    threads: list[int] = field(default_factory=lambda: [torch.get_num_threads()])
    """threads"""
    rounds: int = 9
    """times each is done"""
    json: bool = False
    """print JSON"""


def passes(layer: Callable[..., Tensor], x: Tensor, w: Tensor, like: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The forward pass of a layer, and each of its gradients alone, as tasks."""

    def gradient(of_x: bool) -> Callable[[], Any]:
        given = x.detach().requires_grad_(of_x), w.detach().requires_grad_(not of_x)
        y = layer(*given)
        g = like(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
        return lambda: torch.autograd.grad(y, given[not of_x], g, retain_graph=True)

    return dict(zip(PASSES, (lambda: layer(x, w), gradient(True), gradient(False)), strict=True))


def sparseprop_step(x: Tensor, w: Tensor) -> Callable[[], Any] | None:
    """SparseProp's forward pass and gradients, in the faster of its two ways; None where it is not installed."""
    try:
        from sparseprop.modules import SparseConv2d, SparseLinear
    except ImportError:
        return None
    x = x.detach().contiguous().requires_grad_()
    if w.dim() == 2:
        layer: nn.Module = SparseLinear(w)
    else:
        layer = SparseConv2d(w, padding=1, vectorizing_over_on=x.shape[2] <= 16)
    g = torch.randn(layer(x).shape)
    return lambda: torch.autograd.grad(layer(x), [x, *layer.parameters()], g)


def main() -> None:
    options = parse(Sparse, "Layers by what their weights keep against torch's, A B A B.")
    keep_freed_memory()
    rows = []
    asked = itertools.product(options.layers, options.batches, options.threads, options.rates)
    for name, batch, threads, rate in asked:
        torch.set_num_threads(threads)
        g = torch.Generator().manual_seed(1)
        inputs, filters, *pixels = LAYERS[name]
        shape = (filters, inputs, *[3] * 2 * len(pixels))
        w = (torch.rand(shape, generator=g) >= rate) * torch.randn(shape, generator=g).sign() * 0.1
        x = torch.randn(batch, inputs, *pixels * 2, generator=g)
        layouts: dict[str, Any] = {"": Tensor.contiguous}
        if pixels:
            layouts[" last"] = partial(Tensor.contiguous, memory_format=torch.channels_last)
            ours, theirs = (
                partial(sparse.convolve, bias=None, stride=(1, 1), padding=(1, 1)),
                partial(F.conv2d, padding=1),
            )
        else:
            ours, theirs = partial(sparse.multiply, bias=None), F.linear
        tasks = passes(ours, images_last(x), w, images_last)
        for suffix, layout in layouts.items():
            tasks |= {key + " torch" + suffix: task for key, task in passes(theirs, layout(x), w, layout).items()}
        other = sparseprop_step(x, w)
        seconds = in_turn(tasks if other is None else tasks | {"SparseProp": other}, options.rounds, warm_up=2)
        row: dict[str, Any] = {"layer": name, "batch": batch, "threads": threads, "pruned": rate}
        of_torch = {}
        for key in PASSES:
            both = [seconds[f"{key} torch{suffix}"] for suffix in layouts]
            of_torch[key] = min(both, key=statistics.median)
            row[key] = median_ratio(of_torch[key], seconds[key])
        all_dense, all_ours = (
            [sum(each) for each in zip(*(times[key] for key in PASSES), strict=True)] for times in (of_torch, seconds)
        )
        row |= {"all": median_ratio(all_dense, all_ours), "all, ms": 1000 * statistics.median(all_ours)}
        if other is not None:
            row["SparseProp, all"] = median_ratio(all_dense, seconds["SparseProp"])
        rows.append(row)
    show(rows, options.json)


if __name__ == "__main__":
    run_command(main)

"""What a training step of each method costs, as a ratio to the dense step.

The dense step is that of the plain module with the same optimizer, in the faster of torch's layouts. "alone" is what
the method itself does in a step, without the network: the weights in use and the gradient of what it trains, of every
layer. It tells of a hundredth where the ratios of a disturbed machine do not; "alone / dense" is its share of a dense
step. "dense again" is a second dense model: how far its ratio is from 1 tells how far to trust the others. With
--compute sparse the methods' layers compute by what their weights keep. With --plain the same step with the published
algorithm written plainly (benchmarks/plain.py) stands beside it, as a ratio to the same dense step.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from measuring import against, in_turn, median_ratio, seconds_of, show
from plain import plain, plain_optimizer, plain_step
from torch import Tensor, nn
from torch.optim import Optimizer

from mpt_bihalf import METHODS, create_model
from mpt_bihalf.commandline import parse
from mpt_bihalf.devices import keep_freed_memory
from mpt_bihalf.endings import run_command
from mpt_bihalf.parametrization import binary_layers
from mpt_bihalf.training.build import build_network, build_optimizer, check_computes, step_rules
from mpt_bihalf.training.config import Run
from mpt_bihalf.training.step import train_step
from mpt_bihalf.weights import SCALE_ON

CONTROL = "dense again"


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Which steps to time."""

    models: list[str] = field(default_factory=lambda: ["conv2", "conv4", "conv6", "conv8", "resnet18"])
    """networks"""
    methods: list[str] = field(default_factory=lambda: [name for name in METHODS if name != "dense"])
    """methods"""
    activations: str = "real"
    """of the networks; with binary ones each method is timed with its scales on the outputs and on the weights"""
    compute: str = "dense"
    """how the methods' layers compute: dense or sparse; the dense step is torch's in any case"""
    prune_rate: float = 0.9
    """fraction pruned"""
    batch_size: int = 128
    """images a step"""
    rounds: int = 11
    """times each step is taken, between two dense ones"""
    plain: bool = False
    """time the plainly written published algorithm too"""
    json: bool = False
    """print JSON"""


def alone(model: nn.Module, optimizer: Optimizer | None, rounds: int = 21) -> float:
    """Median seconds of what the method itself does in a step of this model, which has been trained before.

    Between them what is trained moves as in training, by gradients as large as the last step's in other directions, so
    that selections have new scores to look at.
    """
    assert optimizer is not None
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    steps = [p.grad for p in trained]
    layers = {name: model.get_submodule(name) for name, _, _ in binary_layers(model)}
    gradients = {name: 1e-6 * torch.randn_like(cast(Tensor, layer.weight)) for name, layer in layers.items()}

    def work() -> None:
        for name, layer in layers.items():
            used = cast(Tensor, layer.weight)
            if used.requires_grad:
                used.backward(gradients[name])

    seconds = []
    for _ in range(rounds):
        for parameter, step in zip(trained, steps, strict=True):
            parameter.grad = None if step is None else step * torch.randn_like(step)
        optimizer.step()
        model.zero_grad()
        seconds.append(seconds_of(work))
    return statistics.median(seconds)


def main() -> None:
    options = parse(StepCost, "The cost of a training step of each method against the dense step, A B A B.")
    keep_freed_memory()
    rows = []
    for name in options.models:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(options.batch_size, 3, 32, 32, generator=g)
        y = torch.randint(10, (options.batch_size,), generator=g)
        last = x.contiguous(memory_format=torch.channels_last)
        tasks: dict[str, Any] = {}
        methods_alone = {}
        methods = [method for method in options.methods if method != "dense"]  # that one is there anyway
        arms = {method: (method, "") for method in methods}
        if options.activations != "real":
            arms = {f"{method}, scale on {on}": (method, on) for method in methods for on in SCALE_ON}
        for arm, (method, scale_on) in ({"dense": ("dense", ""), CONTROL: ("dense", "")} | arms).items():
            run = Run(
                model=name,
                method=method,
                prune_rate=options.prune_rate,
                activations=options.activations,
                scale_on=scale_on,
                compute=options.compute,
                device="cpu",
            )
            check_computes(run)
            model = build_network(run, 10, 3, 32)
            optimizer = build_optimizer(run, model)
            if method == "dense" and not tasks:  # in the faster of torch's layouts
                layouts = {id(each): partial(train_step, model, optimizer, each, y) for each in (last, x)}
                took = in_turn(layouts, 3, warm_up=2)
                images = min(last, x, key=lambda each: statistics.median(took[id(each)]))
            given = images if method == "dense" else last
            tasks[arm] = partial(train_step, model, optimizer, given, y, rules=step_rules(run, model))
            methods_alone[arm] = partial(alone, model, optimizer)
            if options.plain and arm in methods:
                slow = plain(create_model(name, seed=0), method, options.prune_rate)
                tasks["plain " + method] = partial(plain_step, slow, plain_optimizer(slow), x, y)
        seconds, dense = against(tasks.pop("dense"), tasks, options.rounds)
        typical = statistics.median(chain(*dense.values()))
        rows.append({"model": name, "method": "dense", "ms": 1000 * typical, "ratio to dense": 1.0})
        for method in [CONTROL, *arms]:
            row: dict[str, object] = {
                "model": name,
                "method": method,
                "ms": 1000 * statistics.median(seconds[method]),
                "ratio to dense": median_ratio(seconds[method], dense[method]),
            }
            if method != CONTROL:
                own = methods_alone[method]()
                row |= {"alone, ms": 1000 * own, "alone / dense": own / typical}
            if options.plain and method in methods:
                row["plain, ratio to dense"] = median_ratio(seconds["plain " + method], dense["plain " + method])
            rows.append(row)
    show(rows, options.json)


if __name__ == "__main__":
    run_command(main)

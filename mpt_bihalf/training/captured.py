"""A training step as a graph of the device: its kernels are launched as one, without gaps between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..devices import aside, capture
from ..step_rules import StepRules
from .step import train_step

# Steps before a graph is captured: they make what all later ones find, as momenta and what follows from frozen weights.
WARM_UP = 3


class CapturedStep:
    """`train_step`, captured in the first steps of an epoch and then repeated.

    A graph does what it was captured doing, at the same places in memory. So each batch is copied to where the captured
    one lay, and the learning rate of the optimizer's groups becomes a tensor, [] float32 on the device. What changes by
    epochs, as the pruning rate, needs another graph: one of these for each epoch. The first steps are taken one kernel
    at a time; each is a step of the training as any other.
    """

    def __init__(self) -> None:
        self._before = WARM_UP
        self._graph: tuple[Tensor, Tensor, Tensor, Callable[[], None]] | None = None

    def __call__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        x: Tensor,
        y: Tensor,
        precision: str,
        scaler: GradScaler,
        label_smoothing: float = 0.0,
        rules: StepRules | None = None,
        jsd: bool = False,
    ) -> Tensor:
        """As `train_step`; what is returned holds until the next call. Batches are of one shape, all else the same."""
        if self._before:
            if optimizer:
                put_rates_on(optimizer, x.device)
            self._before -= 1
            with aside(x.device):
                return train_step(model, optimizer, x, y, precision, scaler, label_smoothing, rules, jsd)
        if self._graph is None:
            model.zero_grad(set_to_none=True)  # gradients of the steps before are not the graph's to write to
            x_there, y_there = x.clone(), y.clone()
            there = model, optimizer, x_there, y_there, precision, scaler, label_smoothing, rules, jsd
            self._graph = x_there, y_there, *capture(x.device, lambda: train_step(*there))
        x_there, y_there, totals, repeat = self._graph
        x_there.copy_(x)
        y_there.copy_(y)
        repeat()
        return totals


def put_rates_on(optimizer: Optimizer, device: torch.device) -> None:
    """Make the learning rates of an optimizer's groups tensors on this device, which a graph looks at."""
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            group["lr"] = torch.full((), group["lr"], dtype=torch.float32, device=device)

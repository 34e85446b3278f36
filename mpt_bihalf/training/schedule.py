"""What changes over a run by plan: the learning rate, the pruning rate, the sharpness of estimators."""

from __future__ import annotations

import hashlib
from math import cos, pi

from torch import Tensor, nn
from torch.optim import Optimizer

from ..devices import seed_chance
from ..parametrization import binary_parts
from ..weights import set_progress
from .canonical import RISES_FROM
from .config import Run


def start_epoch(model: nn.Module, run: Run, epoch: int) -> None:
    """Set what is the same all through this epoch, counted from 0."""
    set_progress(model, epoch / run.epochs)
    for _, part, _ in binary_parts(model):
        part.set_prune_rate(prune_rate(run, epoch))


def start_step(optimizer: Optimizer | None, run: Run, epoch: int, step: int, steps: int, rank: int = 0) -> None:
    """Set the learning rate of this step of `steps`, and the chance in it (dropout's), by the run's seed and the step.

    rank: of this process among those that share the run; each has its own chance.

    Counted over the whole run, from 0. Chance comes from torch's global generators, so a resumed run has the same.
    """
    for group in optimizer.param_groups if optimizer else ():
        rate = learning_rate(run, epoch, step, steps) * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):  # where a graph looks at it
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    digest = hashlib.sha256(f"{run.seed} {step} chance {rank or ''}".rstrip().encode()).digest()
    seed_chance(int.from_bytes(digest[:8], "little"))


def prune_rate(run: Run, epoch: int) -> float:
    """That of this epoch, from 0: over the first `prune_epochs` it rises by a cubic (the MPT authors' later code)."""
    left = max(0.0, 1 - epoch / run.prune_epochs) if run.prune_epochs else 0.0
    return run.prune_rate + (RISES_FROM - run.prune_rate) * left**3


def learning_rate(run: Run, epoch: int, step: int, steps: int) -> float:
    """That of this step of `steps` (both counted over the whole run, from 0)."""
    rising = run.warmup * steps // run.epochs
    if step < rising:
        return run.lr * (step + 1) / rising
    factor, step, steps = 1.0, step - rising, steps - rising
    if run.schedule == "cosine":
        factor = (1 + cos(pi * step / steps)) / 2
    elif run.schedule == "linear":
        factor = 1 - step / steps
    elif run.schedule == "step":
        factor = 0.1 ** sum(epoch >= milestone for milestone in run.milestones)
    return run.lr * factor

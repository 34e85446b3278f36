"""A callback that hands on all that it is told of a training to a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mpt_bihalf.training import Callback, Epoch, Progress, Run
from mpt_bihalf.training.log import Figures


class Told(NamedTuple):
    """Steps done, of all, and after an epoch its figures."""

    step: int
    steps: int
    figures: Figures | None = None


class Each(Callback):
    """Calls `tell` after each step and each epoch."""

    def __init__(self, tell: Callable[[Told], object]) -> None:
        self.tell = tell

    def step(self, run: Run, progress: Progress) -> None:
        self.tell(Told(*progress))

    def epoch(self, run: Run, progress: Progress, epoch: Epoch) -> None:
        self.tell(Told(*progress, epoch.figures))

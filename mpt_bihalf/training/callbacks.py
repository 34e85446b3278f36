"""Whom a training tells how far it is: progress bars, TensorBoard's curves, and users' own callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from tqdm import tqdm

from .config import Run
from .log import Figures


class Progress(NamedTuple):
    """How far a run is: training steps done of all that it takes."""

    step: int
    steps: int


class Epoch(NamedTuple):
    """What an epoch came to."""

    figures: Figures
    """a row of metrics.csv: `epoch`, counted from 1, then train_loss, train_top1, test_top1 ... in percent"""
    learning_rate: float
    """of its last step"""
    layers: list[Figures]
    """its rows of layers.csv"""
    trace: list[Figures]
    """its rows of trace.csv; none without `Run.trace`"""


class Callback:
    """What is called while runs are trained, by `train` and by sweeps. Each method does nothing until it is overridden.

    It is called in the process that it was given in, whichever processes train. A run that is gone on with begins
    again, and what was done before is not told of. When an epoch is told, the run's folder has it. What a callback
    raises ends the training, or the sweep, and the same command goes on from the last checkpoint.
    """

    def run_begins(self, run: Run, folder: Path, progress: Progress, model: nn.Module | None = None) -> None:
        """A run begins, or goes on from `progress`. model: the network; None where another process trains it."""

    def step(self, run: Run, progress: Progress) -> None:
        """A training step is done; of other processes' some of the steps, at most five a second."""

    def epoch(self, run: Run, progress: Progress, epoch: Epoch) -> None:
        """An epoch is done, with its evaluation."""

    def run_ends(self, run: Run, result: dict[str, Any]) -> None:
        """A run is over. result: what result.json has; in a sweep also a status that begins with `failed`, and why."""


class Together(Callback):
    """Several callbacks as one, told in their order."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = list(callbacks)

    def run_begins(self, run: Run, folder: Path, progress: Progress, model: nn.Module | None = None) -> None:
        self.tell(lambda callback: callback.run_begins(run, folder, progress, model))

    def step(self, run: Run, progress: Progress) -> None:
        self.tell(lambda callback: callback.step(run, progress))

    def epoch(self, run: Run, progress: Progress, epoch: Epoch) -> None:
        self.tell(lambda callback: callback.epoch(run, progress, epoch))

    def run_ends(self, run: Run, result: dict[str, Any]) -> None:
        self.tell(lambda callback: callback.run_ends(run, result))

    def tell(self, it: Callable[[Callback], object]) -> None:
        """Tell each of them."""
        for callback in self.callbacks:
            it(callback)


class ProgressBar(Callback):
    """A bar on standard error for each run under way, where that is a terminal."""

    def __init__(self) -> None:
        self._bars: dict[Run, tqdm] = {}

    def name_of(self, run: Run) -> str:
        """What stands before the bar."""
        return run.name

    def run_begins(self, run: Run, folder: Path, progress: Progress, model: nn.Module | None = None) -> None:
        self._remove(run)
        self._bars[run] = tqdm(
            desc=self.name_of(run),
            total=progress.steps,
            initial=progress.step,
            unit="step",
            leave=False,
            disable=None,
        )

    def step(self, run: Run, progress: Progress) -> None:
        bar = self._bars[run]
        bar.update(progress.step - bar.n)

    def epoch(self, run: Run, progress: Progress, epoch: Epoch) -> None:
        self.step(run, progress)
        top1, loss = epoch.figures["test_top1"], epoch.figures["train_loss"]
        self._bars[run].set_postfix({"test top-1": f"{top1:.2f}%", "loss": f"{loss:.3f}"})

    def run_ends(self, run: Run, result: dict[str, Any]) -> None:
        self._remove(run)

    def close(self) -> None:
        """Remove all bars."""
        for run in [*self._bars]:
            self._remove(run)

    def _remove(self, run: Run) -> None:
        if run in self._bars:
            self._bars.pop(run).close()


def received(message: list[Any]) -> tuple[Progress] | tuple[Progress, Epoch]:
    """What a `Sender` has sent."""
    progress = Progress(*message[:2])
    return (progress, Epoch(*message[2:])) if message[2:] else (progress,)


class Sender(Callback):
    """Passes on what is told to another process, as JSON can hold it: progress, and an epoch where one is done.

    The first of a run says that it begins. Of steps some are told, at most one in `EVERY` seconds.
    """

    EVERY = 0.2

    def __init__(self, send: Callable[[list[Any]], object]) -> None:
        self.send, self._last = send, 0.0

    def run_begins(self, run: Run, folder: Path, progress: Progress, model: nn.Module | None = None) -> None:
        self.send([*progress])

    def step(self, run: Run, progress: Progress) -> None:
        if time.monotonic() - self._last > self.EVERY:
            self.send([*progress])
            self._last = time.monotonic()

    def epoch(self, run: Run, progress: Progress, epoch: Epoch) -> None:
        self.send([*progress, *epoch])

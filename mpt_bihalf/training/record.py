"""What a run leaves in its folder while it is trained."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..endings import tell
from ..files import csv_text, json_text, write_csv, write_json
from ..signals import FROM_HERE
from ..sums import write_summed
from .callbacks import Epoch, Progress
from .chain import parent_of
from .checkpoint import CHECKPOINT, History, State, save_checkpoint
from .config import Run
from .environment import environment
from .events import TensorBoard
from .log import RESULT
from .names import folder_within
from .parts import IN_RECORD, own_parts
from .recorded_data import DATA

METRICS, LAYERS, TRACE = "metrics.csv", "layers.csv", "trace.csv"
CONFIG, ENVIRONMENT, TIMES = "config.json", "environment.json", "times.json"
# Of a round of iterative pruning: the folder, beside its own, of the round before.
PARENT = "parent.json"
# What is worked out of a finished run's checkpoint when it is asked for.
SHUFFLED, ACTIVATIONS = "shuffled.json", "activations.csv"
# The files of which SHA256SUMS tells. A checkpoint has its sum, and data.json is one.
SUMMED = (METRICS, LAYERS, TRACE, RESULT, SHUFFLED, ACTIVATIONS)
FROM_CHECKPOINT = "the same command goes on from the last checkpoint"
FROM_START = "the same command begins this run anew"


class Record:
    """The files of a run. They are all written here, and by one process, however many train."""

    def __init__(self, folder: Path, run: Run) -> None:
        self._folder, self._run = folder, replace(run, data_digest="")
        self._state: State | None = None  # of the run under way
        self._curves = TensorBoard()
        self._kept = 0, 0  # the epochs and steps done by the checkpoint

    def put_aside(self, fault: ValueError) -> None:
        """Keep the checkpoint, which cannot be used, under another name, and say so."""
        aside = Path(tempfile.mkdtemp(dir=self._folder, prefix="unusable-")) / CHECKPOINT
        (self._folder / CHECKPOINT).replace(aside)
        tell(f"{fault}; it is kept as {aside}, and the run starts over")

    def begin(self, state: State, progress: Progress) -> None:
        """The run goes on from here, or begins."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._started, self._first = time.perf_counter(), state.epoch
        self._state, self._kept = state, (state.epoch, state.step)
        if not state.epoch and not state.step:
            (self._folder / METRICS).unlink(missing_ok=True)  # nothing is done, so nothing may say so
        write_json(self._folder / CONFIG, asdict(self._run))
        if state.data:
            write_json(self._folder / DATA, state.data.to_json())
        if (parent := parent_of(self._run)) is not None:
            write_json(self._folder / PARENT, {"run": folder_within(self._folder.parent, parent).name})
        facts: dict[str, Any] = {**environment(torch.device(self._run.device), self._run.threads)}
        own = own_parts(self._run)
        write_json(self._folder / ENVIRONMENT, facts | ({IN_RECORD: own} if own else {}))
        self._curves.run_begins(self._run, self._folder, progress)

    def end_epoch(self, state: State, progress: Progress, epoch: Epoch) -> None:
        """An epoch is done, and the state has its rows."""
        self._curves.epoch(self._run, progress, epoch)
        self._save(state)
        write_csv(self._folder / METRICS, state.history["epochs"])

    def keep_steps(self, state: State, totals: Tensor) -> None:
        """The run was stopped within an epoch; OSError where that cannot be written, and the last checkpoint stays.

        totals: those of all processes.
        """
        # Once the loss is not finite the run is bound to diverge in this epoch: the checkpoint before is a sound one.
        if state.step and totals.isfinite().all():
            self._save(state, totals)

    def _save(self, state: State, totals: Tensor | None = None) -> None:
        save_checkpoint(self._folder, self._run, state, totals)
        self._kept = state.epoch, state.step

    def where(self) -> str:
        """From where the same command goes on, should the run end now: what is on the disk decides."""
        if self._state is None or self._kept == (self._state.epoch, self._state.step):
            return FROM_HERE
        return FROM_CHECKPOINT if self._kept != (0, 0) else FROM_START

    def end(self, history: History, result: dict[str, Any]) -> None:
        """A file for each kind of figures that the run has; the result last, as it says that the run is done."""
        self._state = None
        self._curves.run_ends(self._run, result)
        seconds = round(time.perf_counter() - self._started, 3)
        write_json(self._folder / TIMES, {"seconds": seconds, "from_epoch": self._first})
        for name in (SHUFFLED, ACTIVATIONS):
            (self._folder / name).unlink(missing_ok=True)  # worked out of a checkpoint before this one
        write_summed(self._folder, tables(history) | {RESULT: json_text(result)})


def tables(history: History) -> dict[str, str]:
    """The texts of the run's tables, by the names of their files: one for each kind of figures that the run has."""
    rows = {METRICS: history["epochs"], LAYERS: history["layers"], TRACE: history["trace"]}
    return {name: csv_text(some) for name, some in rows.items() if some or name != TRACE}


def summarise(epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """A run's result: the figures of the last epoch, and beside them the best epoch's.

    The best epoch is that of the best validation accuracy where images were held out, else of the best test accuracy.
    """
    select = "validation_top1" if "validation_top1" in epochs[-1] else "test_top1"
    best = max(epochs, key=lambda figures: figures[select])
    last = {name: value for name, value in epochs[-1].items() if name != "epoch"}
    return {"epochs": len(epochs), **last, "best_epoch": best["epoch"], "best_epoch_test_top1": best["test_top1"]}


class NoRecord:
    """Of the processes that train, all but one have this in the place of a `Record`: they write nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

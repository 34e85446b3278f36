"""TensorBoard's files of a run: curves, and what its HParams page shows of it."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Collection, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName, Status
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_END_INFO_TAG, create_summary_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn

from .callbacks import Callback, Epoch, Progress
from .config import DEFAULTS, Run
from .log import FINISHED, TRACED
from .names import WHERE

# What determines the result of a run.
HPARAMS = [name for name in DEFAULTS if name not in WHERE]
METRICS = ("top1/test", "loss/test", "top1/validation", "loss/validation", "top1/train", "loss/train")
NAME = "events.out.tfevents."
# In seconds since 1970: names beyond it are not ours, and would not leave room for a later one of ten digits.
LATEST = 9_000_000_000
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class TensorBoard(Callback):
    """TensorBoard's view of a run, in its folder. Of a run that is gone on with, the points from there on go.

    Those of a trace, which count steps, lie in `trace` below it.
    """

    def run_begins(self, run: Run, folder: Path, progress: Progress, model: nn.Module | None = None) -> None:
        steps = max(1, progress.steps // run.epochs)
        self._folder, epochs = folder, progress.step // steps
        self._events = EventFile(folder, epochs + 1)
        self._trace: EventFile | None = None
        self._first_step = epochs * steps + 1
        values = {name: _plain(getattr(run, name)) for name in HPARAMS}
        self._events.add(hparams_pb(values, trial_id=""), 0)  # no group: each run has a row of its own
        self._events.flush()

    def epoch(self, run: Run, progress: Progress, epoch: Epoch) -> None:
        points = {"learning_rate": epoch.learning_rate}
        for name, value in epoch.figures.items():
            if name != "epoch":
                split, measure = name.split("_", 1)
                points[f"{measure}/{split}"] = value
        for row in epoch.layers:
            for name, value in row.items():
                if name not in ("epoch", "layer", "weights"):
                    points[f"{name}/{row['layer']}"] = value
        self._events.add(scalars(points), epoch.figures["epoch"])
        self._events.flush()
        if epoch.trace:
            self._trace = self._trace or self._new_trace()
            for row in epoch.trace:
                self._trace.add(scalars({f"{name}/{row['layer']}": row[name] for name in TRACED}), row["step"])
            self._trace.flush()

    def _new_trace(self) -> EventFile:
        folder = self._folder / "trace"
        if folder.is_symlink():  # what it leads to is not the run's
            folder.unlink()
        return EventFile(folder, self._first_step)

    def run_ends(self, run: Run, result: dict[str, Any]) -> None:
        status = Status.STATUS_SUCCESS if result["status"] == FINISHED else Status.STATUS_FAILURE
        end = SessionEndInfo(status=status, end_time_secs=time.time())
        self._events.add(_hparams(SESSION_END_INFO_TAG, session_end_info=end), 0)
        self._events.flush()


def describe_runs(folder: Path, varied: Collection[str]) -> None:
    """Have the HParams page of the runs below `folder` show what they were varied in, beside their figures.

    Runs themselves do not say: of some alone TensorBoard finds it out. Raises OSError where it cannot be written.
    """
    kinds = {name: _plain(value) for name, value in DEFAULTS.items() if name in HPARAMS}
    infos = [  # by hand, as HParam of summary_v2 cannot say what differs
        HParamInfo(
            name=name,
            type=DataType.DATA_TYPE_STRING if isinstance(value, str) else DataType.DATA_TYPE_FLOAT64,
            differs=name in varied,
        )
        for name, value in kinds.items()
    ]
    metrics = [MetricInfo(name=MetricName(tag=tag)) for tag in METRICS]
    summary = _hparams(EXPERIMENT_TAG, experiment=Experiment(hparam_infos=infos, metric_infos=metrics))
    write_events(folder, [(summary, 0)], ".hparams")


def write_events(folder: Path, summaries: Iterable[tuple[Summary, int]], suffix: str) -> None:
    """A file of these summaries, each at its step, in the place of the one of this suffix that was written here before.

    What else is in the folder stays. Of several processes that do so at once the last one's file stays.
    """
    events = EventFile(folder, 0, suffix)
    try:
        for summary, step in summaries:
            events.add(summary, step)
        events.flush()
    except BaseException:
        events.path.unlink(missing_ok=True)
        raise
    for other in folder.glob(f"{NAME}*{suffix}"):
        if number_of(other) < number_of(events.path):
            other.unlink(missing_ok=True)


class EventFile:
    """A new file of TensorBoard events in `folder`, read after those there; their points from step `first` on go.

    Written in this thread and at `flush` only, so that a full disk is an OSError here (torch's SummaryWriter fails in
    a thread of its own). suffix: how its name ends.
    """

    def __init__(self, folder: Path, first: int, suffix: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.path = _new_file(folder, suffix)
        self._pending = BytesIO()
        self._records = RecordWriter(self._pending)
        self._put(Event(file_version="brain.Event:2"), first)
        self._put(Event(session_log=SessionLog(status=SessionLog.START)), first)

    def add(self, summary: Summary, step: int) -> None:
        self._put(Event(summary=summary), step)

    def flush(self) -> None:
        """Write what was added, unless the file was removed meanwhile. Raises OSError, naming it."""
        try:
            with open(self.path, "ab", opener=lambda path, flags: os.open(path, flags & ~os.O_CREAT | NO_LINK)) as file:
                file.write(self._pending.getvalue())
        except FileNotFoundError:
            pass
        except OSError as fault:
            fault.filename = str(self.path)
            raise
        self._pending.seek(0)
        self._pending.truncate()

    def _put(self, event: Event, step: int) -> None:
        event.step, event.wall_time = step, time.time()
        self._records.write(event.SerializeToString())


def number_of(file: Path) -> int:
    """The number in the name of an event file, by which TensorBoard orders them; 0 where there is none of ours."""
    match = re.match(re.escape(NAME) + r"(\d{10})\.", file.name)
    return int(match[1]) if match and int(match[1]) < LATEST else 0


def scalars(points: dict[str, Any]) -> Summary:
    """A point of each curve, by tag."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()])


def _new_file(folder: Path, suffix: str) -> Path:
    """An empty file whose number is above that of all event files there, whoever else makes one at the same time."""
    while True:
        # TensorBoard reads files by name, so a clock that goes wrong, or another machine's, must not change the order.
        number = max(int(time.time()), 1 + max(map(number_of, folder.iterdir()), default=0))
        path = folder / f"{NAME}{number:010}.{socket.gethostname()}{suffix}"
        try:
            path.open("xb").close()
        except FileExistsError:
            continue
        if all(number_of(other) < number for other in folder.iterdir() if other != path):
            return path
        path.unlink(missing_ok=True)


def _plain(value: Any) -> float | str:
    """A bool as 0 or 1."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value if isinstance(value, str) else float(value)


def _hparams(tag: str, **data: Any) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, metadata=create_summary_metadata(HParamsPluginData(**data)))])

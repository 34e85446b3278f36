"""From finished runs back to their networks: `runs(OUT).best(method="mpt-sign").load().model`."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..data import DataError, Dataset
from ..devices import HOST
from ..endings import tell
from ..sums import read_whole
from ..training import Run
from ..training.config import DEFAULTS
from ..training.finished import finished_model
from ..training.log import FINISHED, RESULT
from ..training.parts import check_parts
from ..training.record import METRICS
from ..training.recorded_data import OtherData
from ..training.run_data import load_run_data
from .records import find_runs, read_result, read_run, run_folder
from .varied import differing


class LoadedRun(NamedTuple):
    """A finished run with all that it left."""

    run: Run
    model: nn.Module
    """as the last checkpoint has it, under its method, in evaluation mode, on the CPU; `bake_weights` makes it plain"""
    data: Dataset
    metrics: list[dict[str, float]]
    """the rows of metrics.csv, one for each epoch"""
    result: dict[str, Any]

    def __repr__(self) -> str:
        return f"<{self.run.name}: test top-1 {self.result['test_top1']:.2f} %, {len(self.metrics)} epochs>"


class DoneRun(NamedTuple):
    """A finished run: its folder, its configuration, and the figures of its last epoch."""

    folder: Path
    run: Run
    result: dict[str, Any]

    def __repr__(self) -> str:
        return f"<{self.folder.name}: test top-1 {self.result['test_top1']:.2f} %>"

    def load(self) -> LoadedRun:
        """See `load_run`."""
        return load_run(self.folder)


class Runs(list[DoneRun]):
    """The finished runs of a sweep."""

    def __repr__(self) -> str:
        names = differing(done.run for done in self) if self else []
        varied = {name: len({getattr(done.run, name) for done in self}) for name in names}
        told = ", ".join(f"{count} of {name}" for name, count in varied.items())
        return f"<{len(self)} finished run{'s' * (len(self) != 1)}{': ' * bool(told)}{told}>"

    def where(self, **fields: Any) -> Runs:
        """Those whose fields have these values, e.g. method="mpt-sign". ValueError for a field that a run has not."""
        unknown = fields.keys() - DEFAULTS.keys()
        if unknown:
            raise ValueError(f"a run has no field {sorted(unknown)[0]!r}; it has {', '.join(DEFAULTS)}")
        return Runs(done for done in self if all(getattr(done.run, name) == value for name, value in fields.items()))

    def best(self, **fields: Any) -> DoneRun:
        """The most accurate at the end of those with these fields; of equal ones the first.

        By validation where images were held out of all of them; else by test, which a line on standard error says, as
        that accuracy is then no fair estimate. ValueError where there is none.
        """
        some = self.where(**fields) if fields else self
        if not some:
            asked = ", ".join(f"{name}={value}" for name, value in fields.items())
            raise ValueError(f"no finished run with {asked}" if asked else "no finished run")
        return best_of(some)


def runs(out: Path | str) -> Runs:
    """The finished runs below a sweep's output folder, by network, data, method, rate and seed.

    ValueError where there is no such folder.
    """
    place = Path(out)
    if not place.is_dir():
        raise ValueError(f"there is no folder {str(place)!r}")
    found = [(run_folder(place, run), run) for run in find_runs(place)]
    results = [(folder, run, read_result(folder, run)) for folder, run in found]
    return Runs(
        DoneRun(folder, run, result) for folder, run, result in results if result and result["status"] == FINISHED
    )


def best_of(some: Sequence[DoneRun]) -> DoneRun:
    """See `Runs.best`."""
    figure = "validation_top1"
    if any(figure not in done.result for done in some):
        figure = "test_top1"
        tell("the best is chosen by its test accuracy, as no images were held out (holdout): too high an estimate")
    return max(some, key=lambda done: float(done.result[figure]))


def load_run(folder: Path | str) -> LoadedRun:
    """The finished run in a folder, with its network and its data, which have to be there still.

    Raises ValueError, in one line, for a folder that is none of a finished run, one without its checkpoint, and parts
    that are not registered here.
    """
    place = Path(folder)
    if not (place / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} is no run's folder: there is no config.json in it")
    place = Path(os.path.realpath(place))  # its name is looked at, and "." has none
    run = read_run(place)
    if run.unregistered:
        raise ValueError(
            f"the run in {str(place)!r}: {run.unregistered[0]} is not registered here: say --plugin, or in a program "
            "mpt_bihalf.plugins.load_plugin"
        )
    check_parts(run, place)
    result = read_result(place, run)
    if result is None or result["status"] != FINISHED:
        damaged = f"its {RESULT} is damaged: give its command again" if (place / RESULT).exists() else "go on with it"
        raise ValueError(f"the run in {str(place)!r} is not finished: {result['status'] if result else damaged}")
    try:
        model, data = finished_model(run, place, load_run_data(run), HOST)
        rows = csv.DictReader(read_whole(place, METRICS).decode().splitlines())
        metrics = [{name: float(value) for name, value in row.items()} for row in rows]
    except (OtherData, DataError):
        raise
    except ValueError as fault:
        raise ValueError(f"{fault}; to do the run again, remove its {RESULT} and give its command again") from fault
    return LoadedRun(run, model.eval(), data, metrics, result)

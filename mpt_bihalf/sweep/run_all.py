"""Do the runs of a grid that are not done yet, whatever else does runs of them at the same time."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..commandline import CommandFailed, one_line
from ..data import Dataset, load_dataset
from ..training import Progress, Run
from ..training.loop import check_fits, check_network, show_progress
from .claim import held
from .engines import EngineOptions, make_engine
from .plan import write_plan
from .records import read_result, run_folder
from .work import Outcome

# Seconds between two looks at runs that somebody else is doing.
LOOK_AGAIN = 1.0


class RunsFailed(CommandFailed):
    """Some runs of a sweep ended with an error; the message says how many, and why the first did."""


def run_all(runs: list[Run], out: Path, options: EngineOptions | None = None) -> None:
    """Do what is missing of `runs` below `out`, each run once, by the engine that the options name.

    A run that fails does not stop the others. One that another sweep is doing is waited for, and taken over if that
    sweep ends before it. Raises ValueError for a run or an option that cannot be, before any file is written, and
    RunsFailed at the end.
    """
    options = options or EngineOptions()
    missing = [run for run in runs if _result(run, out) is None]
    _check(missing)
    if not missing:
        print(f"{len(runs)} of {len(runs)} runs are done already")
        return
    engine = make_engine(out, missing, options)
    write_plan(out, runs)
    if len(missing) < len(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are done already")
    failures: list[Outcome] = []
    with _Bars(len(runs), len(runs) - len(missing)) as bars:
        while missing:
            elsewhere: list[Run] = []
            with closing(engine.do(missing)) as events:
                for event in events:
                    if not isinstance(event, Outcome):
                        bars.under_way(*event)
                    elif event.error:
                        failures.append(event)
                        bars.ended(event)
                    elif event.result is None:
                        elsewhere.append(event.run)
                    else:
                        bars.ended(event)
            missing = _given_up(elsewhere, out, bars)
    if failures:
        first = failures[0]
        raise RunsFailed(
            f"{len(failures)} of {len(runs)} runs failed, the first, {first.run.name}, by: {first.error} "
            f"(the same command tries again what failed, and only that; `python -m mpt_bihalf status {out}` tells more)"
        )


def _result(run: Run, out: Path) -> dict[str, Any] | None:
    """The result of a run; None where there is none, or none that may be read, as doing the run will tell."""
    try:
        return read_result(run_folder(out, run), run)
    except OSError:
        return None


def _given_up(runs: list[Run], out: Path, bars: _Bars) -> list[Run]:
    """Wait until each of these runs, which somebody else is doing, is done or given up; those that are given up."""
    left = list(runs)
    while left:
        free = [run for run in left if not held(run_folder(out, run))]
        missing = []
        for run in free:
            result = _result(run, out)
            if result is None:
                missing.append(run)
            else:
                bars.ended(Outcome(run, result))
        if missing:
            return [*missing, *(run for run in left if run not in free)]
        left = [run for run in left if run not in free]
        if left:
            bars.waiting(len(left))
            time.sleep(LOOK_AGAIN)
    return []


def _check(runs: list[Run]) -> None:
    """ValueError for a run that cannot be."""

    @cache
    def data(name: str, root: str, image_size: int) -> Dataset:
        return load_dataset(name, root or None, image_size or None)

    settings = list(dict.fromkeys(replace(run, seed=0) for run in runs))
    for run in settings:
        check_network(run)
    for run in settings:
        check_fits(run, data(run.data, run.data_root, run.image_size))


class _Bars:
    """A bar for the sweep, and below it one for each run under way; a line for each run that ended."""

    def __init__(self, runs: int, done: int) -> None:
        self._total, self._done = runs, done
        self._sweep = tqdm(total=runs, initial=done, desc="sweep", unit="run", disable=None)
        self._runs: dict[Run, tqdm] = {}

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *fault: object) -> None:
        for bar in (*self._runs.values(), self._sweep):
            bar.close()

    def under_way(self, run: Run, progress: Progress) -> None:
        bar = self._runs.get(run)
        if bar is None:
            bar = tqdm(desc=run.name, total=progress.steps, unit="step", leave=False, disable=None)
            bar.initial = progress.step
            self._runs[run] = bar
        show_progress(bar, progress)

    def ended(self, outcome: Outcome) -> None:
        if outcome.run in self._runs:
            self._runs.pop(outcome.run).close()
        self._done += 1
        self._sweep.update()
        result = outcome.result or {"status": f"failed: {outcome.error}"}
        told = f"test top-1 {result['test_top1']:.2f} %" if "test_top1" in result else result["status"]
        tqdm.write(f"[{self._done}/{self._total}] {outcome.run.name}: {one_line(told, 1000)}")

    def waiting(self, runs: int) -> None:
        self._sweep.set_description(f"sweep ({runs} done by another sweep, waiting)")

"""Do the runs of a grid that are not done yet, whatever else does runs of them at the same time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data import is_here, load_dataset
from ..endings import CommandFailed, one_line, show, tell
from ..training import Progress, Run
from ..training.build import check_begins, check_fits, check_network, what_stays_real
from ..training.parts import changed_parts, own_parts
from ..training.progress import show_progress
from ..training.recorded_data import check_asked, has_begun, refuse_other_data
from .claim import held
from .engines import EngineOptions, make_engine
from .plan import write_plan
from .records import read_result, run_folder
from .repair import is_done, seen_data
from .work import Outcome

# What a data set is loaded by: its name, the folder it is looked for in, the size that images are brought to.
Data = tuple[str, str, int]
# Seconds between two looks at runs that somebody else is doing.
LOOK_AGAIN = 1.0


class RunsFailed(CommandFailed):
    """Some runs of a sweep ended with an error; the message says how many, and why the first did."""


def run_all(runs: list[Run], out: Path, options: EngineOptions | None = None, needs: Sequence[str] = ()) -> None:
    """Do what is missing of `runs` below `out`, each run once, by the engine that the options name.

    A run that fails does not stop the others. One that another sweep is doing is waited for, and taken over if that
    sweep ends before it. needs: files of each run, beside its result, that are to be there in the end, or its
    checkpoint for what is made from that, as `is_done` has it. Raises ValueError for a run or an option that cannot be,
    and for other data than runs were trained on, before any file is written, and RunsFailed at the end.
    """
    options = options or EngineOptions()
    without = {run: None for run in runs if _result(run, out) is None}
    digests = _check(runs, list(without), out, needs)
    missing = [run for run in runs if not is_done(run, out, needs, again=_data_of(run) in digests)]
    missing = [replace(run, data_digest=digests.get(_data_of(run), "")) for run in missing]
    if not missing:
        show(f"{len(runs)} of {len(runs)} runs are done already")
        return
    engine = make_engine(out, missing, options)
    write_plan(out, runs)
    if len(missing) < len(runs):
        show(f"{len(runs) - len(missing)} of {len(runs)} runs are done already")
    failures: list[Outcome] = []
    with closing(_Bars(len(runs), len(runs) - len(missing))) as bars:
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
        free = {run: _result(run, out) for run in left if not held(run_folder(out, run))}
        left = [run for run in left if run not in free]
        for run, result in free.items():
            if result is not None:
                bars.ended(Outcome(run, result))
        missing = [run for run, result in free.items() if result is None]
        if missing:
            return missing + left
        if left:
            bars.waiting(len(left))
            time.sleep(LOOK_AGAIN)
    return []


def _check(runs: list[Run], missing: list[Run], out: Path, needs: Sequence[str]) -> dict[Data, str]:
    """The digests of the data. ValueError for a missing run that cannot be, or one that has seen other data than these.

    Where no run is missing, data that are not there any more are passed over; and those of records that do not tell
    what they saw too, unless files of these are needed, for which they may have to be done again.
    """
    settings = list(dict.fromkeys(replace(run, seed=0) for run in missing))
    new = {replace(run, seed=0) for run in missing if not has_begun(run_folder(out, run))}
    for run in settings:
        check_network(run)
    wanted, digests, notes = {_data_of(run) for run in missing}, {}, dict[str, None]()
    recorded = {run: seen_data(run_folder(out, run), run) for run in runs}
    for of in dict.fromkeys(map(_data_of, runs)):
        name, root, image_size = of
        seen = [run for run in runs if _data_of(run) == of]
        if of not in wanted and not needs and not any(recorded[run] or run.data_digest for run in seen):
            continue
        if of not in wanted and not is_here(name, root or None):
            tell(f"{name} is not there: what its runs came to is shown, and their data are not compared")
            continue
        dataset = load_dataset(name, root or None, image_size or None)
        digests[of] = dataset.digest.sha256
        for run in settings:
            if _data_of(run) == of:
                model = check_fits(run, dataset)
                if run in new:
                    check_begins(run, model)
                notes[what_stays_real(run, model)] = None
        for run in seen:
            check_asked(run, dataset.digest)
            told, folder = recorded[run], run_folder(out, run)
            if told and has_begun(folder):
                refuse_other_data(folder, run, told, dataset.digest)
        if dataset.left_out:
            tell(dataset.left_out)
    for note in filter(None, notes):
        tell(note)
    done = set(runs) - set(missing)
    changed = Counter(part for run in done for part in changed_parts(run, run_folder(out, run)))
    for part, count in changed.items():
        since = f"{part} has changed since {count:,} of {len(done):,} done runs were made"
        if any(part in own_parts(run) for run in missing):
            raise ValueError(f"{since}, and more are to do: give it another name, or take another folder")
        tell(f"{since}, and they stay as they are: give it another name to do them anew")
    unknown = sum(not recorded[run] for run in done)
    if unknown:
        tell(f"{unknown:,} of {len(done):,} done runs are older, or damaged, and do not tell what data they saw")
    return digests


def _data_of(run: Run) -> Data:
    return run.data, run.data_root, run.image_size


class _Bars:
    """A bar for the sweep, and below it one for each run under way; a line for each run that ended."""

    def __init__(self, runs: int, done: int) -> None:
        self._total, self._done = runs, done
        self._sweep = tqdm(total=runs, initial=done, desc="sweep", unit="run", disable=None)
        self._runs: dict[Run, tqdm] = {}

    def close(self) -> None:
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
        told += f"; {result['note']}" if "note" in result else ""
        show(f"[{self._done}/{self._total}] {outcome.run.name}: {one_line(told, 1000)}")

    def waiting(self, runs: int) -> None:
        self._sweep.set_description(f"sweep ({runs} done by another sweep, waiting)")

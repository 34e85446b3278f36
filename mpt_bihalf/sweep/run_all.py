"""Do the runs of a grid that are not done yet, whatever else does runs of them at the same time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data import is_here, load_dataset
from ..endings import CommandFailed, one_line, show, tell
from ..training import Callback, Epoch, Progress, ProgressBar, Run
from ..training.build import check_begins, check_fits, check_network, notes_on
from ..training.callbacks import Together
from ..training.chain import parent_of, rounds_before
from ..training.checkpoint import CHECKPOINT
from ..training.events import describe_runs
from ..training.parts import changed_parts, own_parts
from ..training.recorded_data import check_asked, has_begun, refuse_other_data
from .claim import held
from .engines import Engine, EngineOptions, make_engine
from .plan import find_plans, planned_runs, write_plan
from .records import find_runs, read_result, run_folder
from .repair import is_done, seen_data
from .varied import differing, short_name
from .work import Outcome

# What a data set is loaded by: its name, the folder it is looked for in, the size that images are brought to.
Data = tuple[str, str, int]
# Seconds between two looks at runs that somebody else is doing.
LOOK_AGAIN = 1.0


class RunsFailed(CommandFailed):
    """Some runs of a sweep ended with an error; the message says how many, and why the first did."""


def run_all(
    runs: list[Run],
    out: Path,
    options: EngineOptions | None = None,
    needs: Sequence[str] = (),
    callbacks: Iterable[Callback] = (),
) -> None:
    """Do what is missing of `runs` below `out`, each run once, by the engine that the options name.

    A run that fails does not stop the others. One that another sweep is doing is waited for, and taken over if that
    sweep ends before it. needs: files of each run, beside its result, that are to be there in the end, or its
    checkpoint for what is made from that, as `is_done` has it. callbacks: told here of the runs that are done now, in
    whatever process. Raises ValueError for a run or an option that cannot be, and for other data than runs were trained
    on, before any file is written, and RunsFailed at the end.
    """
    options = options or EngineOptions()
    without = {run: None for run in runs if _result(run, out) is None}
    digests = _check(runs, list(without), out, needs)
    missing = [run for run in runs if not is_done(run, out, needs, again=_data_of(run) in digests)]
    planned = with_rounds(runs)
    rounds = _rounds_of(missing, out)
    missing, runs = list(dict.fromkeys([*rounds, *missing])), list(dict.fromkeys([*rounds, *runs]))
    missing = [replace(run, data_digest=digests.get(_data_of(run), "")) for run in missing]
    if not missing:
        show(f"{len(runs)} of {len(runs)} runs are done already")
        return
    engine = make_engine(out, missing, options)
    write_plan(out, planned)
    if len(missing) < len(runs):
        show(f"{len(runs) - len(missing)} of {len(runs)} runs are done already")
    varied = _describe(runs, out)
    with closing(_Bars(out, len(runs), len(runs) - len(missing), varied)) as bars:
        told = engine.told = _Told(out, [bars, *callbacks])
        try:
            failures = _do(engine, missing, out, bars, told)
        except _CallbackFailed as failed:
            raise (failed.__cause__ or failed) from None
    if failures:
        first = failures[0]
        raise RunsFailed(
            f"{len(failures)} of {len(runs)} runs failed, the first, {run_folder(out, first.run).name}, by: "
            f"{first.error} (the same command tries again what failed, and only that; `python -m mpt_bihalf status "
            f"{out}` tells more)"
        )


def with_rounds(runs: Iterable[Run]) -> list[Run]:
    """These runs, each once, before each the rounds of iterative pruning that it comes after."""
    return list(dict.fromkeys(run for asked in runs for run in (*rounds_before(asked), asked)))


def _rounds_of(missing: list[Run], out: Path) -> list[Run]:
    """The rounds that the missing runs wait for and that are to be done, one rate after the other."""
    found: dict[Run, None] = {}
    for run in missing:
        before = parent_of(run)
        while before is not None and before not in found and not is_done(before, out, (CHECKPOINT,)):
            found[before] = None
            before = parent_of(before)
    return sorted(found, key=lambda run: run.prune_rate)


def _describe(runs: list[Run], out: Path) -> list[str]:
    """What the runs that lie below `out`, or are planned, and these were varied in; TensorBoard is told."""
    varied = differing([*planned_runs(find_plans(out)), *find_runs(out), *runs])
    describe_runs(out, varied)
    return varied


def _do(engine: Engine, missing: list[Run], out: Path, bars: _Bars, told: _Told) -> list[Outcome]:
    """Do these runs, or wait until others have; the outcomes of those that failed."""
    failures: list[Outcome] = []
    while missing:
        elsewhere: list[Run] = []
        with closing(engine.do(missing)) as events:
            for event in events:
                if not isinstance(event, Outcome):
                    told.pass_on(*event)
                elif event.result is None and not event.error:
                    elsewhere.append(event.run)
                else:
                    failures += [event] * bool(event.error)
                    told.end(event)
        missing = _given_up(elsewhere, out, bars, told)
    return failures


def _result(run: Run, out: Path) -> dict[str, Any] | None:
    """The result of a run; None where there is none, or none that may be read, as doing the run will tell."""
    try:
        return read_result(run_folder(out, run), run)
    except OSError:
        return None


def _given_up(runs: list[Run], out: Path, bars: _Bars, told: _Told) -> list[Run]:
    """Wait until each of these runs, which somebody else is doing, is done or given up; those that are given up."""
    left = list(runs)
    while left:
        waiting = {*left}
        free = {
            run: _result(run, out) for run in left if not held(run_folder(out, run)) and parent_of(run) not in waiting
        }
        left = [run for run in left if run not in free]
        for run, result in free.items():
            if result is not None:
                told.end(Outcome(run, result))
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
                notes |= dict.fromkeys(notes_on(run, model))
        for run in seen:
            check_asked(run, dataset.digest)
            told, folder = recorded[run], run_folder(out, run)
            if told and has_begun(folder):
                refuse_other_data(folder, run, told, dataset.digest)
        if dataset.left_out:
            tell(dataset.left_out)
    for note in notes:
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


class _CallbackFailed(BaseException):
    """A callback has raised what is its cause: that ends the sweep, and is no fault of the run under way."""


class _Told(Together):
    """The callbacks of a sweep, told of runs wherever these are done."""

    def __init__(self, out: Path, callbacks: Iterable[Callback]) -> None:
        super().__init__(callbacks)
        self._out, self._begun = out, set[Run]()

    def pass_on(self, run: Run, progress: Progress, epoch: Epoch | None = None) -> None:
        """What an engine yields of a run under way: the first of it is that it begins."""
        if run not in self._begun:
            self._begun.add(run)
            self.run_begins(run, run_folder(self._out, run), progress)
        elif epoch is None:
            self.step(run, progress)
        if epoch is not None:
            self.epoch(run, progress, epoch)

    def run_ends(self, run: Run, result: dict[str, Any]) -> None:
        """Not yet: its outcome is still to come."""

    def tell(self, it: Callable[[Callback], object]) -> None:
        try:
            super().tell(it)
        except Exception as fault:
            raise _CallbackFailed from fault

    def end(self, outcome: Outcome) -> None:
        """Of a run that is done, or has failed."""
        self._begun.discard(outcome.run)
        super().run_ends(outcome.run, outcome.result or {"status": f"failed: {outcome.error}"})


class _Bars(ProgressBar):
    """A bar for the sweep, and below it one for each run under way; a line for each run that ended."""

    def __init__(self, out: Path, runs: int, done: int, varied: Sequence[str]) -> None:
        super().__init__()
        self._out, self._total, self._done, self._varied = out, runs, done, varied
        self._sweep = tqdm(total=runs, initial=done, desc="sweep", unit="run", disable=None)

    def name_of(self, run: Run) -> str:
        return short_name(run, self._varied)

    def close(self) -> None:
        super().close()
        self._sweep.close()

    def run_ends(self, run: Run, result: dict[str, Any]) -> None:
        super().run_ends(run, result)
        self._done += 1
        self._sweep.update()
        told = f"test top-1 {result['test_top1']:.2f} %" if "test_top1" in result else result["status"]
        told += f"; {result['note']}" if "note" in result else ""
        # Of what failed the folder tells more.
        name = run_folder(self._out, run).name if told.startswith("failed") else self.name_of(run)
        show(f"[{self._done}/{self._total}] {name}: {one_line(told, 1000)}")

    def waiting(self, runs: int) -> None:
        self._sweep.set_description(f"sweep ({runs} done by another sweep, waiting)")

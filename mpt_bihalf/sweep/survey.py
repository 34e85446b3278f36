"""What is done, running, failed and missing in an output folder, read at any time; nothing is changed."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from ..endings import one_line
from ..files import read_bytes, read_json
from ..training import Run
from ..training.log import FINISHED, RESULT
from .claim import held, read_claim
from .plan import Plan, find_plans, planned_runs
from .records import FAILURE, MOST_FIGURES, in_order, is_number, read_result, read_run, run_folder, run_folders

# done and diverged runs are never done again; the command goes on with all others.
STATES = ("done", "diverged", "running", "failed", "interrupted", "missing", "unreadable")
OVER = STATES[:2]
# How many runs of a kind its pace is taken from.
SAMPLE = 30
Kind = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How one run stands. What is not known, or does not apply to its state, is None or empty."""

    name: str
    """of its folder"""
    state: str
    """one of `STATES`"""
    run: Run | None = None
    result: dict[str, Any] | None = None
    """as `read_result` has it"""
    epoch: int = 0
    """epochs done, of a run that is not over"""
    figures: dict[str, float] = field(default_factory=dict)
    """of the last epoch done"""
    claim: dict[str, Any] = field(default_factory=dict)
    """who does it: host, pid, since"""
    last_epoch_at: float | None = None
    """when the last epoch ended, or else the running one began, in seconds since 1970"""
    pace: float | None = None
    """seconds an epoch, as far as the run itself tells"""
    why: str = ""
    """one line: why it diverged, failed or cannot be read"""
    when: float | None = None
    """when it failed, in seconds since 1970"""

    @property
    def note(self) -> str:
        """One line that the result has beside its figures; mostly none."""
        return one_line((self.result or {}).get("note", ""))

    @property
    def kind(self) -> Kind:
        """What runs have in common that take about the same time an epoch."""
        return (self.run.model, self.run.data) if self.run else ("", "")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What an output folder says: the planned runs, in order of the plans, then others that are there."""

    out: Path
    runs: list[RunStatus]
    plans: list[Plan]
    strangers: int
    """folders among the runs' that are no run's, or of another run than their name says"""
    now: float

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        counts = Counter(status.state for status in self.runs)
        return {state: counts[state] for state in STATES}

    def of(self, *states: str) -> list[RunStatus]:
        """The runs in these states."""
        return [status for status in self.runs if status.state in states]

    @cached_property
    def paces(self) -> dict[Kind, float]:
        """Seconds an epoch for the kinds of runs still to do: of done runs, else of running ones, where any tells."""
        wanted = {status.kind for status in self.runs if status.run and status.state not in OVER}
        told: dict[Kind, list[float]] = defaultdict(list)
        for status in self.of("done") if wanted else ():
            if status.kind in wanted and len(told[status.kind]) < SAMPLE:
                told[status.kind] += _pace_told(self.out / "runs" / status.name, status)
        for kind in wanted:
            if not told[kind]:
                told[kind] = [status.pace for status in self.of("running") if status.kind == kind and status.pace]
        return {kind: median(paces) for kind, paces in told.items() if paces}

    def seconds_left(self, status: RunStatus) -> float | None:
        """How long a run that is not over takes yet, about; None where nothing tells."""
        pace = status.pace or self.paces.get(status.kind)
        if pace is None or status.run is None:
            return None
        under_way = self.now - status.last_epoch_at if status.last_epoch_at else 0.0
        return max(0.0, pace * (status.run.epochs - status.epoch) - min(max(0.0, under_way), pace))

    @cached_property
    def work_left(self) -> float | None:
        """How long all runs that are not over take one worker, about, in seconds; None where one of them is unknown."""
        each = [self.seconds_left(status) for status in self.of("running", "failed", "interrupted", "missing")]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known, 0.0) if len(known) == len(each) else None

    def to_do(self) -> list[tuple[tuple[str, ...], int]]:
        """The commands that have runs to go on with, the latest first, and how many."""
        left = {status.run for status in self.of("failed", "interrupted", "missing")}
        commands: dict[tuple[str, ...], int] = {}
        for plan in reversed(self.plans):
            count = sum(run in left for run in plan.runs)
            left.difference_update(plan.runs)
            if count:
                commands[plan.command] = commands.get(plan.command, 0) + count
        return list(commands.items())


def survey(out: Path) -> Survey:
    """Look at an output folder, and change nothing. Raises ValueError where it holds no sweep."""
    plans, folders = find_plans(out), run_folders(out)
    if not plans and not folders:
        above = f"; try {str(out.parent)!r}" if out.name == "runs" and out.is_dir() else ""
        raise ValueError(f"no sweep in {str(out)!r}: a sweep's output folder has runs/ in it{above}")
    named = {run_folder(out, run).name: run for run in planned_runs(plans)}
    found: dict[Run, str] = {}
    locked, strangers = [], 0
    for name, folder in folders.items():
        if name in named:
            continue
        try:
            run = read_run(folder)
        except PermissionError as fault:
            locked.append(RunStatus(name=name, state="unreadable", why=str(fault.strerror)))
        except (OSError, ValueError):
            strangers += 1
        else:
            if run_folder(out, run) == folder:
                found[run] = name
            else:
                strangers += 1
    named |= {found[run]: run for run in in_order([*found])}
    runs = [_look(name, run, folders.get(name)) for name, run in named.items()]
    return Survey(out=out, runs=runs + locked, plans=plans, strangers=strangers, now=time.time())


def _look(name: str, run: Run, folder: Path | None) -> RunStatus:
    """How a run stands by what lies in its folder."""
    if folder is None:
        return RunStatus(name=name, state="missing", run=run)
    try:
        result = read_result(folder, run)
        return _over(name, run, result) if result else _look_closer(name, run, folder)
    except OSError as fault:
        return RunStatus(name=name, state="unreadable", run=run, why=one_line(fault.strerror or fault))


def _over(name: str, run: Run, result: dict[str, Any]) -> RunStatus:
    if result["status"] == FINISHED:
        return RunStatus(name=name, state="done", run=run, result=result)
    why = one_line(result["status"].partition(":")[2] or result["status"])
    return RunStatus(name=name, state="diverged", run=run, result=result, why=why)


def _look_closer(name: str, run: Run, folder: Path) -> RunStatus:
    claim = read_claim(folder)
    running = claim is not None and held(folder)
    result = None if running else read_result(folder, run)  # it may have ended since
    if result:
        return _over(name, run, result)
    since = (claim or {}).get("since")
    epoch, figures, written = _last_epoch(folder, run)
    begun: dict[str, Any] = {"name": name, "run": run, "epoch": epoch, "figures": figures}
    if running:
        # Each session has a file of TensorBoard curves of its own: with two somebody went on with the run.
        sessions = len(list(folder.glob("events.out.tfevents.*")))
        pace = (written - since) / epoch if epoch and written and since and sessions <= 1 else None
        at = max(filter(None, (written, since)), default=None)
        pace = pace if pace and pace > 0 else None
        return RunStatus(state="running", claim=claim or {}, last_epoch_at=at, pace=pace, **begun)
    why, when = _failure(folder)
    if why and (when or 0) >= (since or 0):
        return RunStatus(state="failed", why=why, when=when, **begun)
    why = f"{RESULT} is damaged" if (folder / RESULT).exists() else ""
    return RunStatus(state="interrupted", why=why, **begun)  # or an attempt that came after the failure


def _last_epoch(folder: Path, run: Run) -> tuple[int, dict[str, float], float | None]:
    """How many epochs are done, the figures of the last, and when they were written."""
    file = folder / "metrics.csv"
    try:
        head, *rows = read_bytes(file).decode().splitlines()
        written = file.stat().st_mtime
    except (FileNotFoundError, ValueError):
        return 0, {}, None
    figures: dict[str, float] = {}
    for name, text in zip(head.split(",")[:MOST_FIGURES], rows[-1].split(",") if rows else (), strict=False):
        with suppress(ValueError):
            if isfinite(float(text)):
                figures[name] = float(text)
    epoch = figures.pop("epoch", 0)
    return (int(epoch), figures, written) if 0 < epoch <= run.epochs and epoch == int(epoch) else (0, {}, None)


def _failure(folder: Path) -> tuple[str, float | None]:
    """Why and when the last attempt failed; nothing where it did not."""
    try:
        failure = read_json(folder / FAILURE)
    except FileNotFoundError:
        return "", None
    except ValueError:
        failure = None
    if not isinstance(failure, dict):
        return f"{FAILURE} is damaged", None
    when = failure.get("when")
    sound = when is not None and is_number(when) and 0 < when < 2**40
    return one_line(failure.get("error", "")) or "unknown", when if sound else None


def _pace_told(folder: Path, status: RunStatus) -> list[float]:
    """Seconds an epoch of a done run, by its own account, if it has one."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        times = read_json(folder / "times.json")
        epochs = status.run.epochs - times["from_epoch"] if status.run else 0
        if is_number(times["seconds"]) and times["seconds"] > 0 and is_number(epochs) and epochs > 0:
            return [times["seconds"] / epochs]
    return []

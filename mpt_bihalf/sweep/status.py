"""How a sweep stands: what is done, running, failed and missing in an output folder, read at any time."""

from __future__ import annotations

import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from ..endings import one_line
from ..files import read_json, read_text
from ..training import Run
from ..training.record import FINISHED, RESULT
from .claim import held, read_claim
from .plan import Plan, find_plans, planned_runs
from .records import FAILURE, MOST_FIGURES, in_order, is_number, read_result, read_run, run_folders

# done and diverged runs are never done again; the command goes on with all others.
STATES = ("done", "diverged", "running", "failed", "interrupted", "missing", "unreadable")
OVER = STATES[:2]
# How many runs of a kind its pace is taken from.
SAMPLE = 30
# How many lines a list has on the screen at most, and how many commands are told.
MOST_LINES, MOST_COMMANDS = 15, 4
# What of a run is told without its name, where it is no column.
WITHOUT_NAME = ("when", "why", "note")

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
        total = 0.0
        for status in self.of("running", "failed", "interrupted", "missing"):
            seconds = self.seconds_left(status)
            if seconds is None:
                return None
            total += seconds
        return total

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
    named = {run.name: run for run in planned_runs(plans)}
    found, locked, strangers = [], [], 0
    for name, folder in folders.items():
        if name not in named:
            try:
                found.append(read_run(folder))
            except PermissionError as fault:
                locked.append(RunStatus(name=name, state="unreadable", why=str(fault.strerror)))
            except (OSError, ValueError):
                strangers += 1
    named |= {run.name: run for run in in_order(found)}
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
        pace = (written - since) / epoch if epoch and written and since and _one_session(folder) else None
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
        head, *rows = read_text(file).splitlines()
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


def _one_session(folder: Path) -> bool:
    """Whether nobody went on with the run: each session has a file of TensorBoard curves of its own."""
    return len(list(folder.glob("events.out.tfevents.*"))) <= 1


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


def status_json(found: Survey) -> dict[str, Any]:
    """The survey for programs: counts, an estimate of the time left, and every run."""
    return {
        "out": str(found.out),
        "runs": len(found.runs),
        **found.counts,
        "seconds_left_for_one_worker": found.work_left,
        "to_do": [{"command": list(command), "runs": count} for command, count in found.to_do()],
        "strangers": found.strangers,
        "list": [_run_json(found, status) for status in found.runs],
    }


def _run_json(found: Survey, status: RunStatus) -> dict[str, Any]:
    row: dict[str, Any] = {"name": status.name, "state": status.state}
    if status.run and status.state not in OVER:
        row |= {"epoch": status.epoch, "epochs": status.run.epochs}
    if status.state == "running":
        row |= {"seconds_left": found.seconds_left(status)}
    told = {"figures": status.figures, "claim": status.claim, "why": status.why, "when": status.when}
    told["note"] = status.note
    return row | {name: value for name, value in told.items() if value}


def status_text(found: Survey, columns: int = 100, lines: int = 50) -> str:
    """The survey as one screen of so many columns and lines; longer lists are cut, and say so."""
    lists = [(state, found.of(state)) for state in ("running", "failed", "interrupted", "unreadable", "diverged")]
    lists.append(("noted", [status for status in found.of("done") if status.note]))
    shown = [(state, some) for state, some in lists if some]
    room = min(MOST_LINES, max(2, (lines - 12) // max(1, len(shown)) - 2))
    parts = ["\n".join(_summary(found, columns))]
    for state, some in shown:
        latest = sorted(some, key=lambda status: -(status.when or 0))
        told = _fitting([_row(found, status) for status in latest[:room]], columns, room)
        parts.append(f"{state}:\n" + "\n".join(told))
        if len(some) > room or len(told) < len(some):
            parts[-1] += f"\n  ... of {len(some):,}; --json lists all"
    commands = found.to_do()
    for command, count in commands[:MOST_COMMANDS]:
        goes_on = one_line(shlex.join(command), 2000)
        parts.append(f"{count:,} run{'s' * (count > 1)} to do; this goes on with them:\n  {goes_on}")
    if len(commands) > MOST_COMMANDS:
        parts.append(f"... and {len(commands) - MOST_COMMANDS:,} other commands")
    return "\n\n".join(parts)


def _summary(found: Survey, columns: int) -> Iterator[str]:
    total, over = len(found.runs), sum(found.counts[state] for state in OVER)
    counts = [f"{count:,} {state}" for state, count in found.counts.items() if count or state == "done"]
    yield f"{found.out}: {', '.join(counts)} (of {total:,})"
    width = min(columns - 8, 60)
    full = width * over // total if total else 0
    yield f"[{'#' * full}{'.' * (width - full)}] {100 * over / total if total else 0:.3g} %"
    workers, seconds = found.counts["running"], found.work_left
    if over + found.counts["unreadable"] < total:
        if seconds is None:
            yield "time left: unknown (no run of some kind has been timed yet)"
        elif workers:
            yield f"time left: about {duration(seconds / workers)} with {workers} running"
        else:
            yield f"nothing is running; work left: about {duration(seconds)} for one worker"
    if not found.plans:
        yield "no plan of a sweep lies here: what is missing is not known"
    if found.strangers:
        yield f"passed over: {strangers_text(found.strangers)}"


def strangers_text(count: int) -> str:
    return f"{count:,} folder{'s' * (count > 1)} of no run, or of another than the name says"


def _row(found: Survey, status: RunStatus) -> dict[str, str]:
    """What is told of a run, by what it is."""
    row = {"run": one_line(status.name)}
    if status.state in ("running", "interrupted") and status.run:
        row["epoch"] = f"{status.epoch}/{status.run.epochs}"
        for name, figure, shape in (("top-1", "test_top1", "{:.2f} %"), ("loss", "train_loss", "{:.4g}")):
            row[name] = shape.format(status.figures[figure]) if figure in status.figures else ""
    if status.state == "running":
        left, since = found.seconds_left(status), status.claim.get("since")
        row["left"] = "unknown" if left is None else duration(left)
        row["since"] = f"{duration(found.now - since)} ago" if since else ""
        row["by"] = f"{one_line(status.claim.get('host', '?'), 40)}:{status.claim.get('pid', '?')}"
    if status.state == "failed":
        row["when"] = f"{duration(found.now - status.when)} ago" if status.when else ""
    return row | {name: line for name, line in (("note", status.note), ("why", status.why)) if line}


def _fitting(rows: list[dict[str, str]], columns: int, lines: int) -> list[str]:
    """The rows as a table where that fits into the columns, else as many as fit, the figures of each below its name."""
    table = tabulate(rows, headers="keys", tablefmt="plain", disable_numparse=True).splitlines()
    if max(map(len, table)) + 2 <= columns:
        return [f"  {line.rstrip()}" for line in table[len(rows[0]) == 1 :]]
    told = []
    for row in rows[: max(2, lines // 2)]:
        known = [value if name in WITHOUT_NAME else f"{name} {value}" for name, value in row.items() if value]
        told += [f"  {row['run']}", f"    {one_line(', '.join(known[1:]), columns - 4)}"]
    return told


def duration(seconds: float) -> str:
    """Seconds as one reads them: 45 s, 12 min, 3 h 20 min, 4 d 2 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{max(0, round(seconds))} s"
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"

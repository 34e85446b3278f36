"""How a sweep stands, as one screen and for programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..endings import one_line
from ..training import Run
from .records import FAILURE
from .survey import OVER, RunStatus, Survey

# How many lines a list has on the screen at most, and how many commands are told.
MOST_LINES, MOST_COMMANDS = 15, 4
# What of a run is told without its name, where it is no column.
WITHOUT_NAME = ("when", "why", "note")


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
        more = f" ({FAILURE} in the run's folder tells more)" if state == "failed" else ""
        parts.append(f"{state}{more}:\n" + "\n".join(told))
        if len(some) > room or len(told) < len(some):
            parts[-1] += f"\n  ... of {len(some):,}; --json lists all"
    commands = found.to_do()
    for command, count in commands[:MOST_COMMANDS]:
        goes_on = one_line(shlex.join(command), 2000)
        elsewhere = " (typed in another folder)" if _is_elsewhere(command) else ""
        parts.append(f"{count:,} run{'s' * (count > 1)} to do; this goes on with them{elsewhere}:\n  {goes_on}")
    if len(commands) > MOST_COMMANDS:
        parts.append(f"... and {len(commands) - MOST_COMMANDS:,} other commands")
    return "\n\n".join(parts)


def _is_elsewhere(command: Sequence[str]) -> bool:
    """Whether the program of a command is a file that is not to be found from here."""
    return len(command) > 1 and command[1].endswith(".py") and not Path(command[1]).exists()


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
    for part in unregistered(status.run for status in found.runs if status.run and status.state not in OVER):
        yield f"{part} is not registered here: to go on, say --plugin"
    if not found.plans:
        yield "no plan of a sweep lies here: what is missing is not known"
    if found.strangers:
        yield f"passed over: {strangers_text(found.strangers)}"


def unregistered(runs: Iterable[Run]) -> list[str]:
    """The parts of these runs that are not registered here, each with its kind."""
    return list(dict.fromkeys(one_line(part) for run in runs for part in run.unregistered))


def strangers_text(count: int) -> str:
    return f"{count:,} folder{'s' * (count > 1)} of no run, of another than the name says, or of one that has another"


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

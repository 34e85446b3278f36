"""Plans: what each sweep command set out to do, kept in the output folder so that it is known what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from ..distributed import typed_command
from ..files import read_bytes, read_json, refuse_links, remove_leftovers, write_text
from ..training import Run

PLANS = "sweeps"
# In bytes.
LARGEST_PLAN = 16 * 2**20
MOST_RUNS = 100_000


@dataclass(frozen=True)
class Plan:
    """The runs of one sweep command, and the command as its arguments, the interpreter first."""

    command: tuple[str, ...]
    runs: tuple[Run, ...]


def write_plan(out: Path, runs: Sequence[Run], command: Sequence[str] | None = None) -> Path:
    """Keep in `out` what runs are to be done, by this process's command or the one given; returns the file's path.

    A file for each list of runs: the same command finds its own and leaves it as it is. ValueError where the folder of
    plans is a link.
    """
    runs = list(dict.fromkeys(runs))
    names = [field.name for field in fields(Run)]
    rows = [vars(run) for run in runs]
    common = {name: rows[0][name] for name in names if all(row[name] == rows[0][name] for row in rows)} if rows else {}
    varied = [name for name in names if name not in common]
    plan = {
        "command": list(typed_command() if command is None else command),
        "common": common,
        "varied": varied,
        "runs": [[row[name] for name in varied] for row in rows],
    }
    digest = hashlib.sha256("\n".join(run.hash for run in runs).encode()).hexdigest()[:10]
    path = out / PLANS / f"{digest}.json"
    text = json.dumps(plan) + "\n"
    refuse_links(path.parent, out)
    with suppress(OSError, ValueError):
        if read_bytes(path, LARGEST_PLAN) == text.encode():
            remove_leftovers(path)  # of another process that wrote it at the same time
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def find_plans(out: Path) -> list[Plan]:
    """The plans in an output folder, oldest first; a file that is none, or may not be read, is passed over."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for file in (out / PLANS).iterdir():
            with suppress(OSError, ValueError):
                if file.suffix == ".json":
                    found.append((file.stat().st_mtime_ns, file.name, _read(file)))
    return [plan for _, _, plan in sorted(found, key=lambda entry: entry[:2])]


def planned_runs(plans: Iterable[Plan]) -> list[Run]:
    """The runs of all the plans, each once, in order of the plans."""
    return list(dict.fromkeys(run for plan in plans for run in plan.runs))


def _read(file: Path) -> Plan:
    """ValueError for a file that is no plan."""
    plan = read_json(file, LARGEST_PLAN)
    try:
        command, common, varied, rows = (plan[name] for name in ("command", "common", "varied", "runs"))
        if not all(isinstance(word, str) for word in command):
            raise ValueError("its command is none")
        if len(rows) > MOST_RUNS:
            raise ValueError(f"it has more than {MOST_RUNS:,} runs")
        runs = [Run.from_record({**common, **dict(zip(varied, row, strict=True))}) for row in rows]
        return Plan(tuple(command), tuple(dict.fromkeys(runs)))
    except (TypeError, KeyError, AttributeError) as fault:
        raise ValueError(f"{file} is no plan: {fault}") from None

"""Records: what runs leave in their folders, read back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import write_csv
from ..training import Run
from ..training.loop import RESULT


def run_folder(out: Path, run: Run) -> Path:
    """The folder of a run within a sweep's output folder."""
    return out / "runs" / run.name


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of the run in this folder; None where it is not finished."""
    try:
        result = json.loads((folder / RESULT).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return result if isinstance(result, dict) and "status" in result else None


def read_records(out: Path, runs: list[Run]) -> list[dict[str, Any]]:
    """A row for each finished one of these runs: its configuration, then its result."""
    rows = []
    for run in runs:
        folder = run_folder(out, run)
        result = read_result(folder)
        if result is not None:
            rows.append({"run": folder.name, **_flat(asdict(run)), **result})
    return rows


def write_results(out: Path, records: list[dict[str, Any]]) -> Path:
    """Write `results.csv`, one row a run, and return its path."""
    path = out / "results.csv"
    write_csv(path, records)
    return path


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}

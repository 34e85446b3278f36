"""Records: what runs leave in their folders, read back."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import write_csv
from ..methods import METHODS
from ..training import Run
from ..training.loop import DIVERGED, FIGURES, FINISHED, RESULT

SETTING = ("model", "data", "method", "prune_rate", "p_pos", "weight_decay", "schedule", "seed")


def run_folder(out: Path, run: Run) -> Path:
    """The folder of a run within a sweep's output folder."""
    return out / "runs" / run.name


def read_result(folder: Path, run: Run) -> dict[str, Any] | None:
    """The result of this run, in its folder; None where it is not finished, or the file is none that a run leaves."""
    try:
        result = json.loads((folder / RESULT).read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(result, dict) or not isinstance(result.get("status"), str):
        return None
    if result["status"].startswith(DIVERGED):
        return {"status": result["status"]}
    figures = {name: value for name, value in result.items() if name != "status"}
    whole = result["status"] == FINISHED and set(figures) >= {"epochs", *FIGURES} and figures["epochs"] == run.epochs
    sound = all(isinstance(value, int | float) and isfinite(value) for value in figures.values())
    return result if whole and sound else None


def find_runs(out: Path) -> list[Run]:
    """The runs that have a folder in a sweep's output folder, by method, rate and seed."""
    runs = []
    for file in (out / "runs").glob("*/config.json"):
        with suppress(OSError, ValueError, TypeError):  # a folder that is no run's is nobody's record
            runs.append(Run.from_dict(json.loads(file.read_text())))
    methods = list(METHODS)
    return sorted(runs, key=lambda run: (run.model, run.data, methods.index(run.method), run.prune_rate, run.seed))


def read_layers(out: Path, runs: list[Run]) -> pd.DataFrame:
    """The figures of every layer and epoch of these runs, with the fields of `SETTING` beside them."""
    return _read_rows(out, runs, "layers.csv")


def read_trace(out: Path, runs: list[Run]) -> pd.DataFrame:
    """The figures of every layer and traced step of these runs, with the fields of `SETTING` beside them."""
    return _read_rows(out, runs, "trace.csv")


def _read_rows(out: Path, runs: list[Run], name: str) -> pd.DataFrame:
    frames = []
    for run in runs:
        file = run_folder(out, run) / name
        if file.exists() and file.stat().st_size > 1:
            frames.append(pd.read_csv(file, dtype={"layer": str}).assign(**{n: getattr(run, n) for n in SETTING}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def read_records(out: Path, runs: list[Run]) -> list[dict[str, Any]]:
    """A row for each finished one of these runs: its configuration, then its result."""
    rows = []
    for run in runs:
        folder = run_folder(out, run)
        result = read_result(folder, run)
        if result is not None:
            row = {"run": folder.name, **_flat(asdict(run))}
            rows.append(row | {name: value for name, value in result.items() if name not in row or name == "epochs"})
    return rows


def write_results(out: Path, records: list[dict[str, Any]]) -> Path:
    """Write `results.csv`, one row a run, and return its path."""
    path = out / "results.csv"
    write_csv(path, records)
    return path


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}

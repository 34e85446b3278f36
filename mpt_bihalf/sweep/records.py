"""Records: what runs leave in their folders, read back."""

from __future__ import annotations

import os
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import read_json, write_csv
from ..methods import METHODS
from ..training import Run
from ..training.loop import FIGURES
from ..training.record import DIVERGED, FINISHED, RESULT

# Why the last attempt at a run failed.
FAILURE = "failure.json"
SETTING = ("model", "data", "method", "prune_rate", "p_pos", "weight_decay", "schedule", "seed")
# A run has some fifteen: more is no run's doing.
MOST_FIGURES = 100


def run_folder(out: Path, run: Run) -> Path:
    """The folder of a run within a sweep's output folder."""
    return out / "runs" / run.name


def read_result(folder: Path, run: Run) -> dict[str, Any] | None:
    """The result of this run, in its folder; None where it is not finished, or the file is none that a run leaves.

    Raises OSError where the folder may not be read.
    """
    try:
        result = read_json(folder / RESULT)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(result, dict) or not isinstance(result.get("status"), str):
        return None
    if result["status"].startswith(DIVERGED):
        return {"status": result["status"]}
    figures = {name: value for name, value in result.items() if name != "status"}
    whole = result["status"] == FINISHED and set(figures) >= {"epochs", *FIGURES} and figures["epochs"] == run.epochs
    sound = all(name.isidentifier() and is_number(value) for name, value in figures.items())
    return result if whole and sound and len(figures) <= MOST_FIGURES else None


def is_number(value: Any) -> bool:
    """Whether a value read from a file is a finite number that every table can hold."""
    return (isinstance(value, float) and isfinite(value)) or (type(value) is int and abs(value) < 2**53)


def read_run(folder: Path) -> Run:
    """The run that a folder is named by. ValueError where its `config.json` is not of that run, OSError as it comes."""
    try:
        run = Run.from_dict(read_json(folder / "config.json"))
    except (TypeError, AttributeError):
        raise ValueError(f"{folder} is no run's: its config.json is something else") from None
    if run.name != folder.name:
        raise ValueError(f"{folder} is not believed: its configuration is that of {run.name}")
    return run


def find_runs(out: Path) -> list[Run]:
    """The runs that have a folder in a sweep's output folder, by method, rate and seed."""
    runs = []
    for folder in run_folders(out).values():
        with suppress(OSError, ValueError):  # a folder that is no run's is nobody's record
            runs.append(read_run(folder))
    return in_order(runs)


def run_folders(out: Path) -> dict[str, Path]:
    """The folders below `out` that may be runs', by name. OSError where it may not be looked at."""
    try:
        with os.scandir(out / "runs") as entries:
            return {entry.name: Path(entry.path) for entry in entries if entry.is_dir() and entry.name[0] != "."}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def in_order(runs: list[Run]) -> list[Run]:
    """The runs by network, data, method, rate and seed."""
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
    """A row for each finished one of these runs: its configuration, then its result.

    A run whose folder may not be read has none.
    """
    rows = []
    for run in runs:
        with suppress(PermissionError, NotADirectoryError):
            result = read_result(run_folder(out, run), run)
            if result is not None:
                rows.append(record(run.name, run, result))
    return rows


def record(name: str, run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """The row of a run: its name, its configuration, and what of the result does not stand there already."""
    row = {"run": name, **_flat(vars(run))}
    return row | {name: value for name, value in result.items() if name not in row or name == "epochs"}


def write_results(out: Path, records: list[dict[str, Any]]) -> Path:
    """Write `results.csv`, one row a run, and return its path."""
    path = out / "results.csv"
    write_csv(path, records)
    return path


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}

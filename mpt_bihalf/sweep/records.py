"""Records: what runs leave in their folders, read back."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..endings import one_line, tell
from ..files import parse_json, read_json, write_csv
from ..methods import METHODS
from ..sums import read_whole
from ..training import Run
from ..training.config import DEFAULTS
from ..training.log import DIVERGED, FINISHED, MEASURED, RESULT, TRACED
from ..training.names import folder_within
from ..training.record import LAYERS, TRACE
from ..training.recorded_data import recorded_data
from ..training.step import FIGURES

if TYPE_CHECKING:
    import pandas as pd  # half a second, for tables alone: workers, who make none, do without

# Why the last attempt at a run failed.
FAILURE = "failure.json"
SETTING = ("model", "data", "method", "prune_rate", "p_pos", "weight_decay", "schedule", "seed")
# A run has some fifteen: more is no run's doing.
MOST_FIGURES = 100
# The columns of a run's tables of layers, and those of them that have no value for a filter or layer all pruned.
COLUMNS = {
    LAYERS: ["epoch", "layer", "weights", *MEASURED],
    TRACE: ["step", "epoch", "layer", "weights", "connections", *TRACED],
}
UNDEFINED = {"positive_share", "filter_share_lowest", "filter_share_highest", "cut_off"}
# How many runs a line names.
MOST_NAMED = 5
# How many digits of a data set's digest stand in a table.
SHORT = 12


def run_folder(out: Path, run: Run) -> Path:
    """The folder of a run within a sweep's output folder: that of its name, or another whose name ends in its hash."""
    return folder_within(out / "runs", run)


def read_result(folder: Path, run: Run) -> dict[str, Any] | None:
    """The result of this run, in its folder; None where it is not finished, or the file is none that a run leaves, or
    not the one that this run left.

    Raises OSError where the folder may not be read.
    """
    try:
        result = parse_json(read_whole(folder, RESULT), folder / RESULT)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(result, dict) or not isinstance(result.get("status"), str):
        return None
    if result["status"].startswith(DIVERGED):
        return {"status": result["status"]}
    figures = {name: value for name, value in result.items() if name not in ("status", "note")}
    wanted = {"epochs", *FIGURES, *(["validation_top1"] if run.holdout else [])}
    whole = result["status"] == FINISHED and set(figures) >= wanted and figures["epochs"] == run.epochs
    sound = all(name.isidentifier() and is_number(value) for name, value in figures.items())
    sound &= isinstance(result.get("note", ""), str)
    return result if whole and sound and len(figures) <= MOST_FIGURES else None


def is_number(value: Any) -> bool:
    """Whether a value read from a file is a finite number that every table can hold."""
    return (isinstance(value, float) and isfinite(value)) or (type(value) is int and abs(value) < 2**53)


def read_run(folder: Path) -> Run:
    """The run by whose hash a folder is named. ValueError where its `config.json` is of none, OSError as it comes."""
    try:
        run = Run.from_record(read_json(folder / "config.json"))
    except (TypeError, AttributeError):
        raise ValueError(f"{folder} is no run's: its config.json is something else") from None
    if not folder.name.endswith(f"-{run.hash}"):
        raise ValueError(f"{folder} is not believed: its configuration is that of {run.name}")
    return run


def find_runs(out: Path) -> list[Run]:
    """The runs that have a folder in a sweep's output folder, each once, by method, rate and seed."""
    runs: dict[str, Run] = {}
    for folder in run_folders(out).values():
        with suppress(OSError, ValueError):  # a folder that is no run's is nobody's record
            run = read_run(folder)
            runs.setdefault(run.hash, run)
    return in_order([*runs.values()])


def run_folders(out: Path) -> dict[str, Path]:
    """The folders below `out` that may be runs', by name. OSError where it may not be looked at."""
    try:
        with os.scandir(out / "runs") as entries:
            return {entry.name: Path(entry.path) for entry in entries if entry.is_dir() and entry.name[0] != "."}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def in_order(runs: list[Run]) -> list[Run]:
    """The runs by network, data, method, rate and seed."""
    places = {method: place for place, method in enumerate(METHODS)}
    last = len(places)  # of those that are not registered here
    return sorted(
        runs,
        key=lambda run: (run.model, run.data, places.get(run.method, last), run.method, run.prune_rate, run.seed),
    )


def read_layers(out: Path, runs: list[Run]) -> pd.DataFrame:
    """The figures of every layer and epoch of these runs, with their names and the fields of `SETTING` beside them.

    A run whose table is missing or not sound has none; of a finished one the user is told.
    """
    return _read_rows(out, runs, LAYERS)


def read_trace(out: Path, runs: list[Run]) -> pd.DataFrame:
    """The figures of every layer and traced step of these runs, as `read_layers` has those of the epochs."""
    return _read_rows(out, runs, TRACE)


def _read_rows(out: Path, runs: list[Run], name: str) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for run in runs:
        folder = run_folder(out, run)
        try:
            frame = read_table(folder, run, name)
        except (FileNotFoundError, ValueError) as fault:
            ended = (read_result(folder, run) or {}).get("status") == FINISHED
            if ended and (run.trace or name != TRACE):
                why = "" if isinstance(fault, FileNotFoundError) else f" ({fault})"
                tell(f"{folder.name}: {name} is missing{why}, and the run is left out")
            continue
        frames.append(frame.assign(run=folder.name, **{field: getattr(run, field) for field in SETTING}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def read_table(folder: Path, run: Run, name: str) -> pd.DataFrame:
    """`layers.csv` or `trace.csv` of this run, in its folder: the columns and rows that a run leaves, all figures.

    Raises ValueError for anything else, FileNotFoundError where there is none.
    """
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    content, columns = read_whole(folder, name), COLUMNS[name]
    if content == b"\n":  # of a network without binary layers
        return pd.DataFrame(columns=columns)
    undefined = {column: ["nan"] for column in columns if column != "layer"}
    try:
        frame = pd.read_csv(io.BytesIO(content), dtype={"layer": str}, keep_default_na=False, na_values=undefined)
    except Exception as fault:  # pandas has many kinds
        raise ValueError(f"{folder / name} is no table: {one_line(fault)}") from None
    sound = list(frame) == columns and all(is_numeric_dtype(frame[column]) for column in undefined) and len(frame)
    if sound:
        epochs, layers = frame["epoch"], list(dict.fromkeys(frame["layer"]))
        last = epochs.iloc[-1]
        sound = (
            1 <= last <= run.epochs
            and list(dict.fromkeys(epochs)) == list(range(1, int(last) + 1))
            and list(frame["layer"]) == layers * (len(frame) // len(layers))
            and epochs.value_counts().nunique() == 1
            and frame[[*({*columns} - UNDEFINED - {"layer"})]].notna().all(axis=None)
        )
    if not sound:
        raise ValueError(f"{folder / name} is none that the run leaves")
    return frame


def having(records: list[dict[str, Any]], *tables: pd.DataFrame) -> list[dict[str, Any]]:
    """The records without those of finished runs that have no rows in one of the tables.

    tables: as `read_layers` and `read_trace` have them. Raises ValueError where no record is left.
    """
    names = [set(table["run"]) if "run" in table else set() for table in tables]
    kept = [row for row in records if row["status"] != FINISHED or all(row["run"] in some for some in names)]
    if records and not kept:
        raise ValueError("no run has left what is to be shown")
    return kept


def read_records(out: Path, runs: list[Run]) -> list[dict[str, Any]]:
    """A row for each finished one of these runs: its configuration, then its result.

    A run whose folder may not be read has none.
    """
    rows = []
    for run in runs:
        with suppress(PermissionError, NotADirectoryError):
            folder = run_folder(out, run)
            result = read_result(folder, run)
            if result is not None:
                rows.append(record(run, result, folder))
    return rows


def record(run: Run, result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The row of a run: its folder's name, its configuration, and what of the result does not stand there already.

    data_digest is that of the data it was trained on, as its folder tells it, in `SHORT` digits; empty where unknown.
    """
    seen = None
    with suppress(OSError, ValueError):
        seen = recorded_data(folder)
    row = {"run": folder.name, **vars(run), "data_digest": seen.sha256[:SHORT] if seen else ""}
    row = {field: " ".join(map(str, value)) if isinstance(value, tuple) else value for field, value in row.items()}
    return row | {name: value for name, value in result.items() if name not in row or name == "epochs"}


def noted(records: Iterable[dict[Any, Any]]) -> list[str]:
    """A line for each note that stands in these records, which names the runs that have it."""
    runs: dict[str, list[str]] = {}
    for row in records:
        if isinstance(row.get("note"), str):
            runs.setdefault(one_line(row["note"]), []).append(one_line(row["run"]))
    lines = []
    for note, names in runs.items():
        others = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        lines.append(f"{note}: {', '.join(names[:MOST_NAMED])}{others}")
    return lines


def write_results(out: Path, records: list[dict[str, Any]]) -> Path:
    """Write `results.csv`, a row for each of these runs and then for each other finished run below `out`; its path.

    What a configuration leaves empty is `none` there: pandas takes an empty cell for no value at all.
    """
    path, names = out / "results.csv", {row["run"] for row in records}
    others = read_records(out, [run for run in find_runs(out) if run_folder(out, run).name not in names])
    write_csv(path, [named_nothing(row) for row in [*records, *others]])
    return path


def named_nothing(row: dict[str, Any]) -> dict[str, Any]:
    """The row with `none` where a field of a run is empty."""
    return {name: "none" if value == "" and name in DEFAULTS else value for name, value in row.items()}

"""Finished runs whose files are damaged or missing: what can be made again is, and what cannot is done again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from ..data.digest import DataDigest
from ..endings import tell
from ..files import refuse_links, write_json
from ..sums import SUMS, Damaged, read_sums, read_whole, write_summed
from ..training import Run
from ..training.checkpoint import CHECKPOINT, has_ended, read_history
from ..training.finished import read_activations, read_shuffled
from ..training.log import FINISHED, RESULT
from ..training.record import ACTIVATIONS, CONFIG, SHUFFLED, SUMMED, TRACE, tables
from ..training.recorded_data import DATA, recorded_data
from .claim import claimed
from .records import read_result, read_run, read_table, run_folder


def is_done(run: Run, out: Path, needs: Sequence[str] = (), again: bool = True) -> bool:
    """Whether a run is done, for a command that needs these files of it, or that can not be done again.

    Tables and `data.json` that are damaged, or needed and missing, are made again from the checkpoint; `shuffled.json`
    and `activations.csv` are made by whoever needs them, from the checkpoint too. Where there is none that is whole, a
    run that lacks what is needed is not done, and its result is put aside. All this is told to the user.
    `config.json` is written anew where it is not the run's. again: whether the run's data are there to do it again.
    """
    folder = run_folder(out, run)
    try:
        result = read_result(folder, run)
        damaged = damaged_files(folder)
    except OSError:  # nothing that may be read, as doing the run will tell
        return False
    if result is None:
        _tell(folder, [f"{name} is damaged" for name in damaged if name in (SUMS, RESULT)])
        return False
    _mend_configuration(folder, out, run)
    lacking = _lacking(folder, run, needs) if result["status"] == FINISHED else {}
    faults = dict.fromkeys(damaged, "damaged") | lacking
    if (folder / SUMS).exists() and not (folder / DATA).exists():
        faults[DATA] = "missing"
    if not faults:
        return True
    try:
        refuse_links(folder, out)
        history, data = read_history(folder, run)
        if result["status"] == FINISHED and len(history["epochs"]) < run.epochs:
            raise ValueError(f"its checkpoint is of epoch {len(history['epochs'])} of {run.epochs}")
    except (OSError, ValueError) as why:
        _tell(folder, [f"{name} is {fault}, and cannot be made again: {why}" for name, fault in faults.items()])
        if lacking and again:
            _put_aside(folder, out, run, needs)
        elif not lacking:
            _tell(folder, [f"to do it again, and have its files whole, remove {folder / RESULT}"])
        return not (lacking and again)
    made_again = {name: text for name, text in tables(history).items() if name in faults}
    try:
        if made_again:
            write_summed(folder, made_again, SUMMED)
        if DATA in faults and data:
            write_json(folder / DATA, data.to_json())
    except OSError as why:
        _tell(folder, [f"{name} is {fault}, and cannot be made again: {why}" for name, fault in faults.items()])
        return not lacking
    made = dict.fromkeys((SHUFFLED, ACTIVATIONS), "its checkpoint is there to make it again")
    made |= dict.fromkeys(made_again, "made again from its checkpoint")
    if data:
        made[DATA] = "made again from its checkpoint"
    _tell(folder, [f"{name} was {fault}; {made[name]}" for name, fault in faults.items() if name in made])
    return True


def seen_data(folder: Path, run: Run) -> DataDigest | None:
    """What the run in this folder was trained on, by its record, or by its checkpoint where that is damaged or gone.

    None where neither tells, and in a record of a time before digests.
    """
    with suppress(Damaged, OSError):
        recorded = recorded_data(folder)
        if recorded is not None or not (folder / SUMS).exists():
            return recorded
    with suppress(OSError, ValueError):
        return read_history(folder, run)[1]
    return None


def damaged_files(folder: Path) -> list[str]:
    """The files of a run that are there and not what was written: by SHA256SUMS, or that list or `data.json` itself.

    Of a record of a time before these nothing is known. OSError for what may not be read.
    """
    try:
        sums = read_sums(folder)
    except Damaged:
        return [SUMS]
    damaged = []
    try:
        recorded_data(folder)
    except Damaged:
        damaged.append(DATA)
    for name in SUMMED if sums is not None else ():
        try:
            read_whole(folder, name)
        except Damaged:
            damaged.append(name)
        except FileNotFoundError:
            pass
    return damaged


def _mend_configuration(folder: Path, out: Path, run: Run) -> None:
    """Write the run's configuration where that in the folder is another's, or none."""
    with suppress(OSError, ValueError):
        if read_run(folder).hash == run.hash:
            return
    with suppress(OSError, ValueError):  # a link, or nothing that may be written
        refuse_links(folder, out)
        write_json(folder / CONFIG, asdict(replace(run, data_digest="")))
        _tell(folder, [f"{CONFIG} was damaged; written again"])


def _lacking(folder: Path, run: Run, needs: Sequence[str]) -> dict[str, str]:
    """Those of the needed files that this finished run has and should not lack: missing, or damaged."""
    lacking = {}
    for name in needs:
        if (name == TRACE and not run.trace) or (name == SHUFFLED and not run.learn_mask):
            continue
        if not (folder / name).exists():
            lacking[name] = "missing"
        elif not _is_sound(folder, run, name):
            lacking[name] = "damaged"
    return lacking


def _is_sound(folder: Path, run: Run, name: str) -> bool:
    if name == SHUFFLED:
        return read_shuffled(folder) is not None
    if name == CHECKPOINT:
        return has_ended(folder, run)
    if name == ACTIVATIONS:
        return read_activations(folder) is not None
    with suppress(FileNotFoundError, ValueError):
        return int(read_table(folder, run, name)["epoch"].max()) == run.epochs
    return False


def _put_aside(folder: Path, out: Path, run: Run, needs: Sequence[str]) -> None:
    """Keep the result under another name, so that the run is done again; not where somebody does it, or has done it."""
    with suppress(OSError, ValueError):  # a link, or nothing that may be written, as doing the run will tell
        refuse_links(folder, out)
        with claimed(folder) as ours:
            if ours and _lacking(folder, run, needs):
                aside = Path(tempfile.mkdtemp(dir=folder, prefix="put-aside-")) / RESULT
                (folder / RESULT).replace(aside)
                _tell(folder, [f"it is done again; its result is kept as {aside}"])


def _tell(folder: Path, lines: Sequence[str]) -> None:
    for line in lines:
        tell(f"{folder.name}: {line}")

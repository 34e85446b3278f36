"""The data that a run was trained on, as its record says, against those that are there now."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..data.digest import DataDigest
from ..files import read_json
from ..sums import Damaged
from .config import Run

DATA = "data.json"


class OtherData(ValueError):
    """The data are not those of the record; the message says what differs."""


def recorded_data(folder: Path) -> DataDigest | None:
    """What the run in this folder was trained on; None in a record of a time before digests. Damaged for no digest."""
    try:
        return DataDigest.from_json(read_json(folder / DATA))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise Damaged(f"{folder / DATA} is damaged") from None


def check_data(folder: Path, run: Run, data: DataDigest) -> None:
    """OtherData where the run in this folder has come to something on other data than these."""
    with suppress(Damaged):  # the checkpoint tells too
        recorded = recorded_data(folder)
        if recorded is not None and has_begun(folder):
            refuse_other_data(folder, run, recorded, data)


def check_asked(run: Run, data: DataDigest) -> None:
    """OtherData where the run asks for other data than these."""
    if run.data_digest not in ("", data.sha256):
        raise OtherData(f"{run.data} holds other data than asked for: SHA-256 {data.sha256}, not {run.data_digest}")


def has_begun(folder: Path) -> bool:
    """Whether a run has come to something in this folder that depends on its data."""
    return any((folder / name).exists() for name in ("result.json", "checkpoint.pt"))


def refuse_other_data(folder: Path, run: Run, recorded: DataDigest, data: DataDigest) -> None:
    """OtherData unless the data are those recorded."""
    if data.sha256 != recorded.sha256:
        raise OtherData(
            f"{run.data} holds other data than {folder} was trained on: {data.difference(recorded)}; "
            "put those back, or do the run anew in another folder"
        )

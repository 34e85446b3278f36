"""The ticket of a finished run."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ..data import DataError, Dataset, short_data
from ..data.digest import DataDigest
from ..devices import HOST
from ..sweep.records import read_result, read_run
from ..training import Run
from ..training.finished import finished_model
from ..training.record import FINISHED, RESULT
from ..training.recorded_data import OtherData
from ..training.run_data import load_run_data
from .file import network_of
from .ticket import Ticket


def run_ticket(folder: Path, note: str = "") -> Ticket:
    """The ticket of the finished run in this folder, with what it was trained on and what came of it.

    Its data are needed. Raises ValueError for a folder that is none of a finished run, or without its checkpoint.
    """
    run, model, dataset = trained_model(folder)
    network = network_of(run, dataset.num_classes, dataset.in_channels, dataset.image_size)
    about: dict[str, Any] = {
        "run": asdict(run) | {"data": placeless(run.data), "data_root": ""},  # without places of its maker's machine
        "result": read_result(folder, run),
        "images": {"classes": dataset.classes, "mean": dataset.mean, "std": dataset.std},
        "data": dataset.digest.to_json(),
    }
    return Ticket.of(model, network, about | ({"note": note} if note else {}))


def trained_model(folder: Path) -> tuple[Run, nn.Module, Dataset]:
    """The run in a folder, its network as its last checkpoint has it, under its method, and its data, on the host."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} is no run's folder: there is no config.json in it")
    folder = Path(os.path.realpath(folder))  # its name is looked at, and "." has none
    run = read_run(folder)
    if run.unregistered:
        raise ValueError(f"the run in {str(folder)!r}: {run.unregistered[0]} is not registered here: say --plugin")
    result = read_result(folder, run)
    if result is None or result["status"] != FINISHED:
        damaged = f"its {RESULT} is damaged: give its command again" if (folder / RESULT).exists() else "go on with it"
        raise ValueError(f"the run in {str(folder)!r} is not finished: {result['status'] if result else damaged}")
    try:
        model, dataset = finished_model(run, folder, load_run_data(run), HOST)
    except (OtherData, DataError):
        raise
    except ValueError as fault:
        raise ValueError(f"{fault}; to do the run again, remove its {RESULT} and give its command again") from fault
    return run, model.eval(), dataset


def placeless(data: str) -> str:
    """The name of a data set without the place where it lies: `folder:NAME`, or its name."""
    prefix, colon, _ = data.partition(":")
    return f"{prefix}:{short_data(data)}" if colon else data


def other_data(ticket: Ticket, dataset: Dataset) -> str:
    """In what a data set differs from the one that the ticket's run saw; empty where it is that, or none is told."""
    try:
        seen = DataDigest.from_json(ticket.about["data"])
    except (KeyError, ValueError):
        return ""
    return dataset.digest.difference(seen)

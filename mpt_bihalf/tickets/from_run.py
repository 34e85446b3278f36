"""The ticket of a finished run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data import Dataset, short_data
from ..data.digest import DataDigest
from ..sweep.done import load_run
from .file import network_of
from .ticket import Ticket


def run_ticket(folder: Path, note: str = "") -> Ticket:
    """The ticket of the finished run in this folder, with what it was trained on and what came of it.

    Its data are needed. Raises ValueError for a folder that is none of a finished run, or without its checkpoint.
    """
    run, model, dataset, _, result = load_run(folder)
    network = network_of(run, dataset.num_classes, dataset.in_channels, dataset.image_size)
    about: dict[str, Any] = {
        "run": asdict(run) | {"data": placeless(run.data), "data_root": ""},  # without places of its maker's machine
        "result": result,
        "images": {"classes": dataset.classes, "mean": dataset.mean, "std": dataset.std},
        "data": dataset.digest.to_json(),
    }
    return Ticket.of(model, network, about | ({"note": note} if note else {}))


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

"""Checkpoints: all that an interrupted run needs to end as if it had not been interrupted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..files import write_whole
from .config import Run

CHECKPOINT = "checkpoint.pt"

History = dict[str, list[dict[str, Any]]]


def save_checkpoint(folder: Path, run: Run, model: nn.Module, optimizer: Optimizer | None, history: History) -> None:
    """Write the state after the epochs in `history`, whole or not at all. A finished run needs no optimizer."""
    state = {
        "run": _plain(asdict(run)),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer else None,
        "history": history,
    }
    write_whole(folder / CHECKPOINT, lambda file: torch.save(state, file))


def load_checkpoint(folder: Path, run: Run, model: nn.Module, optimizer: Optimizer | None) -> History | None:
    """Put the last checkpoint's state into model and optimizer and return its history; None if there is none.

    Nothing but tensors and plain values is unpickled. Raises ValueError for a file that is no checkpoint of this run;
    model and optimizer may then hold a part of it.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=_device_of(model), weights_only=True)
        if Run.from_dict(state["run"]).hash != run.hash:
            raise ValueError("it belongs to another run")
        history = _sound(state["history"], run)
        model.load_state_dict(state["model"])
        if optimizer and state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
        elif optimizer and len(history["epochs"]) < run.epochs:
            raise ValueError("it has no optimizer to go on with")
    except Exception as fault:  # a file that is truncated, corrupted or something else makes torch raise many kinds
        reason = f"{type(fault).__name__}: {fault}".splitlines()[0]
        raise ValueError(f"{path} is no checkpoint to go on from ({reason})") from fault
    return history


def _sound(history: Any, run: Run) -> History:
    epochs, layers, trace = history["epochs"], history["layers"], history["trace"]
    if [row["epoch"] for row in epochs] != list(range(1, len(epochs) + 1)) or not 0 < len(epochs) <= run.epochs:
        raise ValueError("its history is not that of this run")
    if not all(isinstance(row, dict) for row in [*layers, *trace]):
        raise ValueError("its history of the layers is damaged")
    return history


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device

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


def load_checkpoint(folder: Path, run: Run, model: nn.Module, optimizer: Optimizer) -> History | None:
    """Put the last checkpoint's state into model and optimizer and return its history; None if there is none to use.

    Nothing but tensors and plain values is unpickled. Raises ValueError for a file that is no checkpoint of this run.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=_device_of(model), weights_only=True)
        saved_run, weights, moments, history = (state[key] for key in ("run", "model", "optimizer", "history"))
        same = Run.from_dict(saved_run).hash == run.hash
    except Exception as fault:  # torch raises many kinds for a file that is truncated, corrupted or something else
        reason = f"{type(fault).__name__}: {fault}".splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint ({reason})") from fault
    if not same:
        raise ValueError(f"{path} belongs to another run")
    model.load_state_dict(weights)
    if moments is not None:
        optimizer.load_state_dict(moments)
    return history


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device

"""A finished ticket scored again with its masks shuffled: what it owes to where its weights are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..data import Dataset, evaluation_batches
from ..files import write_json
from ..weights import shuffle_scores
from .checkpoint import load_checkpoint
from .config import Run
from .loop import EVALUATION_BATCH, build, evaluate

SHUFFLED = "shuffled.json"


def evaluate_shuffled(run: Run, folder: Path, load: Callable[[], Dataset]) -> dict[str, Any]:
    """Test figures of a finished run whose scores are permuted within its layers, by the run's seed.

    Kept in the run's folder as `shuffled.json`, and read from there the next time. load: gives the run's data, asked
    only where the figures are not kept. Raises ValueError for a folder without the run's checkpoint, or a run that has
    no scores to permute.
    """
    path = folder / SHUFFLED
    known = _read(path)
    if known is not None:
        return known
    torch.set_num_threads(run.threads)
    dataset = load().to(torch.device(run.device))
    model, _ = build(run, dataset)
    state = load_checkpoint(folder, run, model, None, len(dataset.train) // run.batch_size)
    if state is None or state.epoch < run.epochs:
        raise ValueError(f"{folder} has no checkpoint of the finished run")
    shuffle_scores(model, run.seed)
    figures = evaluate(model, evaluation_batches(dataset.test, dataset, EVALUATION_BATCH), "test", run)
    write_json(path, figures)
    return figures


def _read(path: Path) -> dict[str, Any] | None:
    try:
        figures = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    sound = isinstance(figures, dict) and all(isinstance(value, float) for value in figures.values())
    return figures if sound and "test_top1" in figures else None

"""A finished run looked at again: with its masks shuffled, or at its activations."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..activations import BinaryActivation
from ..data import Dataset, evaluation_batches
from ..files import csv_text, json_text, parse_json
from ..sums import read_whole, write_summed
from ..weights import shuffle_scores
from .build import build
from .checkpoint import load_checkpoint
from .config import Run
from .record import ACTIVATIONS, SHUFFLED, SUMMED
from .recorded_data import check_data
from .run_data import decoders
from .step import evaluate

if TYPE_CHECKING:
    import pandas as pd  # see `sweep.records`


def evaluate_shuffled(run: Run, folder: Path, load: Callable[[], Dataset]) -> dict[str, Any]:
    """Test figures of a finished run whose scores are permuted within its layers, by the run's seed.

    Kept in the run's folder as `shuffled.json`, and read from there the next time. load: gives the run's data, asked
    only where the figures are not kept. Raises ValueError for a folder without the run's checkpoint, for other data
    than the run was trained on, and for a run that has no scores to permute.
    """
    known = read_shuffled(folder)
    if known is not None:
        return known
    model, dataset = finished_model(run, folder, load())
    shuffle_scores(model, run.seed)
    figures = evaluate_test(model, dataset, run.precision)
    write_summed(folder, {SHUFFLED: json_text(figures)}, SUMMED)
    return figures


def activation_shares(run: Run, folder: Path, load: Callable[[], Dataset]) -> pd.DataFrame:
    """The share of +1 among the binary activations of each channel, over all test images and positions.

    A row for each channel of each `BinaryActivation`: layer (its name), channel, share in [0, 1]. Kept in the run's
    folder as `activations.csv`. Arguments and errors as of `evaluate_shuffled`; a network without binary activations is
    an error too.
    """
    import pandas as pd

    known = read_activations(folder)
    if known is not None:
        return known
    model, dataset = finished_model(run, folder, load())
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BinaryActivation)}
    if not layers:
        raise ValueError(f"{run.model} has real-valued activations: nothing to count")
    counts: dict[nn.Module, list[Any]] = {layer: [0, 0] for layer in layers.values()}  # of +1 by channel, and of all

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        channels = output.transpose(0, 1).flatten(1)
        counts[layer][0] = counts[layer][0] + (channels > 0).sum(1)
        counts[layer][1] += channels.shape[1]

    with ExitStack() as hooks:
        for layer in counts:
            hooks.enter_context(layer.register_forward_hook(count))
        evaluate_test(model, dataset, run.precision)
    shares = {name: (counts[layer][0].double() / counts[layer][1]).tolist() for name, layer in layers.items()}
    rows = [
        {"layer": name, "channel": channel, "share": share}
        for name, by_channel in shares.items()
        for channel, share in enumerate(by_channel)
    ]
    write_summed(folder, {ACTIVATIONS: csv_text(rows)}, SUMMED)
    return pd.DataFrame(rows)


def read_shuffled(folder: Path) -> dict[str, Any] | None:
    """The figures that `evaluate_shuffled` has kept; None where there are none that it can have kept."""
    try:
        figures = parse_json(read_whole(folder, SHUFFLED), folder / SHUFFLED)
    except (FileNotFoundError, ValueError):
        return None
    names = {"test_loss", "test_top1", "test_top5"}
    if not isinstance(figures, dict) or figures.keys() != names:
        return None
    sound = all(isinstance(value, float) and isfinite(value) and value >= 0 for value in figures.values())
    return figures if sound and figures["test_top1"] <= figures["test_top5"] <= 100 else None


def read_activations(folder: Path) -> pd.DataFrame | None:
    """The rows that `activation_shares` has kept; None where there are none that it can have kept."""
    import pandas as pd

    try:
        known = pd.read_csv(io.BytesIO(read_whole(folder, ACTIVATIONS)), dtype={"layer": str}, keep_default_na=False)
        known = known.astype({"channel": int, "share": float})
    except (FileNotFoundError, ValueError, KeyError):
        return None
    if list(known) != ["layer", "channel", "share"] or known.empty or not known["share"].between(0, 1).all():
        return None
    counted = known.groupby("layer", sort=False).cumcount()
    return known if (known["channel"] == counted).all() else None


def evaluate_test(model: nn.Module, dataset: Dataset, precision: str = "fp32") -> dict[str, float]:
    """Loss, top-1 and top-5 on the test images."""
    return evaluate(model, evaluation_batches(dataset.test, dataset), "test", precision)[0]


def finished_model(
    run: Run, folder: Path, dataset: Dataset, device: torch.device | None = None
) -> tuple[nn.Module, Dataset]:
    """The network of a finished run as its checkpoint has it, and the data, both on the run's device or another one.

    Raises ValueError for a folder without the checkpoint of the finished run, OtherData for other data than it was
    trained on.
    """
    check_data(folder, run, dataset.digest)
    torch.set_num_threads(run.threads)
    dataset = dataset.to(device or torch.device(run.device)).decoded_by(decoders(run))
    model, _ = build(run, dataset)
    steps = len(dataset.train) // run.batch_size
    state = load_checkpoint(folder, run, model, None, steps, data=dataset.digest)
    if state is None or state.epoch < run.epochs:
        raise ValueError(f"{folder} has no checkpoint of the finished run")
    return model, dataset

"""A ticket's mask and signs as the start of a real-valued network that is trained under them, beside controls.

Of the masks of the largest trained weights (Frankle & Carbin 2019) it is the signs of the initial weights that matter,
and hardly their sizes (Zhou et al. 2019).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from statistics import mean, stdev
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import Dataset, training_batches
from ..devices import reproducible_kernels
from ..given_masks import fix_masks
from ..initialise import draw_latent
from ..models import AROUND
from ..report.tables import Table
from ..training import Run, train_step
from ..training.build import build_network, build_optimizer
from ..training.finished import evaluate_test
from ..training.schedule import start_epoch, start_step
from .ticket import Ticket
from .transfer import check_images, check_masked, shuffled

# Of real-valued weights: those that tickets were trained at are mostly for scores, and too high.
LEARNING_RATE = 0.01


def retrained_table(ticket: Ticket, dataset: Dataset, run: Run, trials: int = 1) -> Table:
    """Test top-1 after the last epoch of networks that start from a ticket's mask and signs, and of controls.

    run: how to train, as `retraining_run` gives it; trial i takes the seed run.seed + i. A cell is the figure, or with
    more trials the mean ± sample standard deviation; "diverged" where the loss of any is not finite.

    Each network is real-valued: its weights, trained under a fixed mask, start as magnitudes of Kaiming normal draws
    (fan-in over the connections kept) times signs. The rest, such as norms and skipped layers, is fresh and trained
    too. Rows: mask and signs of the ticket; its mask, the signs permuted among the kept weights of each layer; both
    permuted within each layer, all three with the same magnitudes; and dense, without mask or signs.

    Where the data have another number of classes than the ticket's network, the layers whose shape follows from it are
    fresh, dense ones in each row: what the ticket knows of its classes is nothing that could go to others.

    Raises ValueError for a ticket without a binary layer, one that prunes nothing or does not know its network, and for
    data that the network or the batch size does not fit.
    """
    check_masked(ticket)
    check_images(ticket, dataset)
    reproducible_kernels()
    dataset = dataset.augmented(*run.augmentation)
    rows: dict[tuple[str, str], Callable[[dict[str, Tensor], int], dict[str, Tensor]]] = {
        ("of the ticket", "of the ticket"): lambda layers, seed: layers,
        ("of the ticket", "shuffled"): _signs_shuffled,
        ("shuffled", "shuffled"): shuffled,
        ("none", "random"): lambda layers, seed: {},
    }
    steps = len(rows) * trials * run.epochs * (len(dataset.train) // run.batch_size)
    table = []
    with tqdm(desc="training", total=steps, unit="step", leave=False, disable=None) as bar:
        for labels, start in rows.items():
            figures = []
            for seed in range(run.seed, run.seed + trials):
                trial = replace(run, seed=seed)
                model, layers = _fresh(ticket, dataset, trial)
                _start_from(model, start(layers, seed), seed)
                figures.append(_trained_top1(model.to(dataset.device), dataset, trial, bar))
            known = [figure for figure in figures if figure is not None]
            spread = f" ± {stdev(known):.2f}" if len(known) > 1 else ""
            table.append([*labels, f"{mean(known):.2f}{spread}" if len(known) == len(figures) else "diverged"])
    title = f"test top-1 in %: {dataset.name}, {run.epochs} epochs at a learning rate of {run.lr:g}"
    return Table(title, ["mask", "signs", "trained"], table)


def retraining_run(ticket: Ticket, data: str, **chosen: Any) -> Run:
    """How `retrained_table` trains on `data`: SGD with momentum, its learning rate falling by a cosine.

    Epochs, batch size and augmentation are those of the ticket's run, where it tells one; else, and for all other
    fields, a run's defaults. chosen: fields of `Run` to be otherwise; None for those that are not.

    Raises ValueError for a field that is out of range, and for a ticket that does not know its network.
    """
    ticket.outline()  # or says what is wrong
    architecture = cast(dict[str, Any], ticket.architecture)
    told = ticket.told("run")
    run = Run.from_dict(told) if told else Run()
    known = {name: getattr(run, name) for name in ("epochs", "batch_size", "augment", "flip", "crop_padding")}
    known |= {name: architecture[name] for name in ("width", "activations", *AROUND) if name in architecture}
    known["lr"] = LEARNING_RATE
    known |= {name: value for name, value in chosen.items() if value is not None}
    return Run(method="dense", model=architecture["name"], data=data, **known)


def _fresh(ticket: Ticket, dataset: Dataset, run: Run) -> tuple[nn.Module, dict[str, Tensor]]:
    """The ticket's network as the run draws it for the classes of these data, and B of the layers that fit it."""
    image_size = cast(dict[str, Any], ticket.architecture)["image_size"]
    model = build_network(run, dataset.num_classes, dataset.in_channels, image_size)
    layers = {name: layer.binary for name, layer in ticket.layers.items()}
    return model, {name: b for name, b in layers.items() if model.get_submodule(name).weight.shape == b.shape}


@torch.no_grad()
def _start_from(model: nn.Module, layers: dict[str, Tensor], seed: int) -> None:
    """Draw the weights of these layers anew, in place, with the signs and under the masks of B."""
    # By a draw of its own: that of the seed alone may be the one that the ticket's mask was learned on.
    digest = hashlib.sha256(f"{seed} magnitudes".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    for name, binary in layers.items():
        weight: Any = model.get_submodule(name).weight
        draw_latent(weight, max(1, int(binary.count_nonzero())) / binary.numel(), "kaiming_normal", generator)
        weight.abs_().mul_(binary)
    fix_masks(model, layers)


def _signs_shuffled(layers: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, binary in layers.items():
        signs = binary[binary != 0]
        order = torch.randperm(len(signs), generator=generator)
        moved[name] = binary.masked_scatter(binary != 0, signs[order])
    return moved


def _trained_top1(model: nn.Module, dataset: Dataset, run: Run, bar: tqdm) -> float | None:
    """Test top-1 after the last epoch; None where the loss is not finite."""
    optimizer = build_optimizer(run, model)
    steps = len(dataset.train) // run.batch_size
    for epoch in range(run.epochs):
        model.train()
        start_epoch(model, run, epoch)
        for step, (x, y) in enumerate(training_batches(dataset, run.batch_size, run.seed, epoch), epoch * steps):
            start_step(optimizer, run, epoch, step, run.epochs * steps)
            train_step(model, optimizer, x, y, label_smoothing=run.label_smoothing)
            bar.update()
    figures = evaluate_test(model, dataset)
    return figures["test_top1"] if isfinite(figures["test_loss"]) else None

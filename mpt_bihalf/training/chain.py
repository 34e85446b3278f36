"""Iterative pruning as a chain of runs: each a round, trained under the mask that the end of the one before gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import Dataset
from ..data.digest import DataDigest
from ..distributed import Team
from ..files import parse_json
from ..given_masks import fix_masks, fixed_masks, has_fixed_mask
from ..models import find_network
from ..parametrization import binary_layers
from ..rounds import trained_masks
from ..sums import read_whole
from .build import build_model
from .canonical import rewind_point
from .checkpoint import load_checkpoint
from .config import Run
from .log import DIVERGED, RESULT
from .names import folder_within
from .recorded_data import OtherData

# Pruning rates between 0 and the one that is asked for have so many digits behind the point.
DIGITS = 6


def parent_of(run: Run) -> Run | None:
    """The round before this one, whose end it prunes; None of a run that is no round of iterative pruning.

    Of the chain 1 - (1 - imp_share)^i it is the last rate below the run's own, so that chains to different rates share
    their rounds, and their masks are nested. The first round prunes the unpruned run. A control is only ever the last.
    """
    if run.mask != "imp":
        return None
    rate, rounds = 0.0, 0
    while (following := round(1 - (1 - run.imp_share) ** (rounds + 1), DIGITS)) < run.prune_rate:
        rate, rounds = following, rounds + 1
    # As `auto` would have it at the parent's rate: round 0 is the unpruned run that others have.
    dense = run.compute == "sparse" and rate < find_network(run.model).sparse_from
    compute = "dense" if dense else run.compute
    if not rate:
        return replace(run, mask="", scope="", prune_rate=0.0, compute=compute)
    return replace(run, prune_rate=rate, imp_control="", compute=compute)


def rounds_before(run: Run) -> list[Run]:
    """The rounds that a run of iterative pruning comes after, the unpruned run first; none for other runs."""
    found: list[Run] = []
    before = parent_of(run)
    while before is not None:
        found.insert(0, before)
        before = parent_of(before)
    return found


class RoundDiverged(ArithmeticError):
    """The round before has diverged, so there is nothing to prune."""


def has_diverged(folder: Path) -> bool:
    """Whether the run in this folder has ended by diverging."""
    try:
        result = parse_json(read_whole(folder, RESULT), folder / RESULT)
        return bool(result["status"].startswith(DIVERGED))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def begin_round(
    team: Team,
    run: Run,
    model: nn.Module,
    folder: Path,
    dataset: Dataset,
    data: DataDigest,
    replay: Callable[[Run, int], nn.Module],
) -> None:
    """Put on the run's network, as it is drawn, the mask of its round, and the weights that it begins with.

    folder: the run's own, beside which those of the rounds before lie. replay: the network of a run as it is after so
    many steps. Raises ValueError where the round before is not done, or its checkpoint not there, OtherData where it
    was trained on other data, and RoundDiverged where it has diverged.
    """
    parent = parent_of(run)
    assert parent is not None
    place = folder_within(folder.parent, parent)
    if team.spread(b"diverged" if team.rank == 0 and has_diverged(place) else None) is not None:
        raise RoundDiverged(f"the round before has diverged, {place.name}")
    before = _end_of(team, parent, place, dataset, data)
    names = [name for name, module in model.named_modules() if has_fixed_mask(module)]
    masks = trained_masks(before, run.prune_rate, run.imp_criterion, run.scope, names or None)
    if run.imp_control == "shuffled":
        masks = {name: _shuffled(mask, f"{run.seed} shuffled {name}") for name, mask in masks.items()}
    count, unit = rewind_point(run.rewind, run.epochs)
    steps = len(dataset.train) // run.batch_size
    first = rounds_before(run)[0]
    if run.imp_control == "redrawn":
        first = replace(first, seed=_seed(f"{run.seed} redrawn"))
    if count or run.imp_control == "redrawn":
        _take_over(model, replay(first, count * (steps if unit == "ep" else 1)))
    fix_masks(model, masks, allow_empty=True)
    for _, part, latent in binary_layers(model):
        part.begin_scale(latent)


def _end_of(team: Team, run: Run, folder: Path, dataset: Dataset, data: DataDigest) -> nn.Module:
    """The network of a run at its end."""
    model = build_model(run, dataset).to(dataset.device)
    steps = len(dataset.train) // run.batch_size
    try:
        state = load_checkpoint(folder, run, model, None, steps, team, data)
    except OtherData:
        raise
    except ValueError as fault:
        raise ValueError(f"the round before, which this one prunes: {fault}") from fault
    if state is None or state.epoch < run.epochs:
        there = "is not done" if state else "is not there, or has no checkpoint"
        raise ValueError(
            f"the round before, which this one prunes, {there}: {folder.name}; the commands do a chain in order"
        )
    return model


@torch.no_grad()
def _take_over(model: nn.Module, other: nn.Module) -> None:
    """Give a network whose masks keep all the parameters and buffers of another, that has none yet."""
    fix_masks(other, fixed_masks(model))
    theirs = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        tensor.copy_(theirs[name])


def _shuffled(mask: Tensor, told: str) -> Tensor:
    """The mask with its places permuted."""
    generator = torch.Generator().manual_seed(_seed(told))
    order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
    return mask.flatten()[order].view(mask.shape)


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

"""What is chosen by counting along an order made once, step after step, is what a selection chooses."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from mpt_bihalf import binarize_weights, kernels
from mpt_bihalf.latent import Latent
from mpt_bihalf.ranks import Ranks
from mpt_bihalf.selection import largest
from mpt_bihalf.transport import transported


def chosen(ranks: Ranks, counts: Tensor, members: Tensor) -> Tensor:
    return torch.from_numpy(ranks.largest(counts.numpy(), members.numpy()))


@pytest.mark.parametrize("kind", ["drawn", "tied", "equal"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 27), (9, 700), (3, 5000), (2, 70_000)])
def test_every_step_is_a_selection_whether_cuts_drift_or_jump(shape: tuple[int, int], kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=g)
    values = {"drawn": values, "tied": values.round(), "equal": torch.ones(shape)}[kind]
    ranks, scores = Ranks(values.numpy()), torch.randn(shape, generator=g)
    for step in range(12):
        scores += (3.0 if step % 5 == 4 else 0.05) * torch.randn(shape, generator=g)
        members = scores > (-0.5, 1.5, -9.0, 9.0)[step // 3]  # most, few, all and none
        n = members.sum(1)
        share = torch.rand(shape[0], generator=g) if step % 4 == 3 else 0.5
        counts = torch.where(torch.rand(shape[0], generator=g) < 0.1, 0, (n * share).ceil().long())
        assert torch.equal(chosen(ranks, counts, members), largest(values, counts, among=members)), step


def test_writing_to_what_it_gave_or_copying_it_changes_nothing() -> None:
    values = torch.randn(4, 300)
    members, counts = torch.rand(4, 300) < 0.5, torch.tensor([0, 1, 20, 70])
    ranks = Ranks(values.numpy())
    expected = chosen(ranks, counts, members).clone()
    chosen(ranks, counts, members).logical_not_()
    for same in (ranks, deepcopy(ranks), pickle.loads(pickle.dumps(ranks))):
        assert torch.equal(chosen(same, counts, members), expected)


def test_frozen_weights_are_ranked_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    monkeypatch.setattr("mpt_bihalf.latent.Ranks", lambda values: made.append(1) or Ranks(values))
    layer = binarize_weights(torch.nn.Linear(50, 8), "mpt-bihalf", 0.5, seed=0)
    part, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original

    def check() -> None:
        with torch.no_grad():
            part.scores.add_(0.1 * torch.randn(8, 50))
        latent = Latent(weight.detach())
        mask = part.binary(weight) != 0
        assert torch.equal(part.binary(weight) > 0, transported(latent, mask) & mask)

    for _ in range(4):
        check()
    assert len(made) == 1
    with torch.no_grad():
        weight.mul_(-1)
    for _ in range(4):
        check()
    assert len(made) == 2

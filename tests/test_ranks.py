"""What is chosen by counting along an order made once, step after step, is what a selection chooses."""

from __future__ import annotations

import sys
from copy import deepcopy
from threading import Thread

import pytest
import torch
from torch import Tensor

from mpt_bihalf import binarize_weights, kernels
from mpt_bihalf.latent import Latent
from mpt_bihalf.ranks import Ranks
from mpt_bihalf.selection import largest
from mpt_bihalf.transport import transported
from mpt_bihalf.weights import set_prune_rate


def chosen(ranks: Ranks, counts: Tensor, members: Tensor) -> Tensor:
    return torch.from_numpy(ranks.largest(counts.numpy(), members.numpy()))


@pytest.fixture(params=["few", "many"], autouse=True)
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are counted, or only those near the last cut."""
    monkeypatch.setattr(kernels, "FEW", 0 if request.param == "many" else 10**6)


@pytest.mark.parametrize("kind", ["drawn", "tied", "equal"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 27), (9, 700), (3, 5000), (2, 70_000)])
def test_every_step_is_a_selection_whether_cuts_drift_or_jump(shape: tuple[int, int], kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=g)
    values = {"drawn": values, "tied": values.round(), "equal": torch.ones(shape)}[kind]
    ranks, scores = Ranks(values), torch.randn(shape, generator=g)
    for step in range(12):
        scores += (3.0 if step % 5 == 4 else 0.05) * torch.randn(shape, generator=g)
        members = scores > (-0.5, 1.5, -9.0, 9.0)[step // 3]  # most, few, all and none
        n = members.sum(1)
        share = torch.rand(shape[0], generator=g) if step % 4 == 3 else 0.5
        counts = torch.where(torch.rand(shape[0], generator=g) < 0.1, 0, (n * share).ceil().long())
        assert torch.equal(chosen(ranks, counts, members), largest(values, counts, among=members)), step


def test_writing_to_what_it_gave_changes_nothing() -> None:
    members, counts = torch.rand(4, 300) < 0.5, torch.tensor([0, 1, 20, 70])
    ranks = Ranks(torch.randn(4, 300))
    expected = chosen(ranks, counts, members).clone()
    chosen(ranks, counts, members).logical_not_()
    assert torch.equal(chosen(ranks, counts, members), expected)


def test_threads_may_ask_at_once() -> None:
    values = torch.randn(64, 3000)
    ranks = Ranks(values)
    wrong = []

    def ask(seed: int) -> None:
        members = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) < 0.1
        counts = members.sum(1) // (seed + 2)
        expected = largest(values, counts, among=members)
        wrong.extend(step for step in range(150) if not torch.equal(chosen(ranks, counts, members), expected))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [Thread(target=ask, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert not wrong


def test_frozen_weights_are_ranked_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    layer = binarize_weights(torch.nn.Linear(50, 8), "mpt-bihalf", 0.5, seed=0)
    part, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original

    def used(times: int) -> set[Ranks]:
        """Those whose order was made in so many steps."""
        made = set()
        for _ in range(times):
            with torch.no_grad():
                part.scores.add_(0.1 * torch.randn(8, 50))
            mask = part.binary(weight) != 0
            assert torch.equal(part.binary(weight) > 0, transported(Latent(weight.detach()), mask) & mask)
            ranks = part._before[2].ranks
            made |= {ranks} if "_order" in vars(ranks) else set()
        return made

    assert not used(4)  # not worth it for a few
    first = used(20)
    set_prune_rate(layer, 0.7)
    assert used(20) == first
    assert len(first) == 1
    with torch.no_grad():
        weight.mul_(-1)
    assert not used(4)
    assert len(used(20) | first) == 2
    assert deepcopy(layer).parametrizations.weight[0]._before is None

"""Layers that are ranked together are ranked once in each pass, and never by scores of before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import bake_weights, binarize_weights, binary_layers, binary_weights, global_score_masks, ranking
from mpt_bihalf.ranking import GlobalRanking

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


@pytest.fixture
def rankings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each time that all scores were ranked."""
    made: list[int] = []
    together = ranking.masks_together

    def counted(scores: list[Tensor], prune_rate: float) -> list[Tensor]:
        made.append(len(scores))
        return together(scores, prune_rate)

    monkeypatch.setattr(ranking, "masks_together", counted)
    return made


@pytest.fixture
def model() -> nn.Module:
    layers = [nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)]
    return binarize_weights(nn.Sequential(*layers), "mpt-sign", 0.6, scope="global", seed=0)


def masks_of(model: nn.Module) -> list[Tensor]:
    return [layer.weight != 0 for layer in model if hasattr(layer, "weight")]


def expected(model: nn.Module) -> list[Tensor]:
    scores = [part.scores.detach() for _, part, _ in binary_layers(model) if part.scores is not None]
    return [mask.bool() for mask in global_score_masks(scores, 0.6)]


def test_a_pass_ranks_once_and_the_next_one_anew(model: nn.Module, rankings: list[int]) -> None:
    model(X)
    assert rankings == [3]
    model(X)
    assert rankings == [3, 3]


@pytest.mark.parametrize("read", [binary_weights, bake_weights])
def test_who_reads_all_layers_ranks_once(read: object, model: nn.Module, rankings: list[int]) -> None:
    read(model)  # type: ignore[operator]
    assert rankings == [3]


def test_outside_of_a_pass_each_layer_is_answered_from_the_scores_as_they_are(model: nn.Module) -> None:
    for step in range(3):
        found = []
        for layer, (_, part, _) in zip(model, [*binary_layers(model)], strict=True):
            part.scores.data.mul_(-2.0 - step)  # of the layer that is asked next
            found.append((layer.weight != 0, expected(model)))
        assert all(torch.equal(mask, masks[place]) for place, (mask, masks) in enumerate(found))


def test_a_pass_that_breaks_off_is_over(model: nn.Module) -> None:
    model.insert(2, Broken())
    with pytest.raises(RuntimeError, match="broken"):
        model(X)
    for _, part, _ in binary_layers(model):
        part.scores.data.copy_(torch.rand_like(part.scores))
    assert all(map(torch.equal, masks_of(model), expected(model)))


def test_threads_in_passes_of_their_own_see_the_scores(model: nn.Module) -> None:
    out = model(X)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, out) for found in pool.map(model, [X] * 100))


def test_a_copy_is_told_of_its_own_passes(model: nn.Module, rankings: list[int]) -> None:
    copy = deepcopy(model)
    for _, part, _ in binary_layers(copy):
        part.scores.data.neg_().add_(1)
    model(X)
    assert copy(X).shape == (3, 2)
    assert rankings == [3, 3]
    assert all(map(torch.equal, masks_of(copy), expected(copy)))


def test_a_baked_model_is_told_of_none(model: nn.Module) -> None:
    baked = bake_weights(model)
    hooks = [baked._forward_pre_hooks, baked._forward_hooks, baked._forward_hooks_always_called]
    assert not any(hooks)
    assert any(isinstance(hook.__self__, GlobalRanking) for hook in model._forward_hooks.values())


def test_scores_that_are_lent_in_a_pass_are_ranked_by_themselves(model: nn.Module) -> None:
    told = GlobalRanking()
    told.begin()
    scores = [torch.rand(3, 4), torch.rand(2, 5)]
    lent = [scores[0], scores[1].neg().add(2)]
    first, second = told.masks(scores, 0.5), told.masks(lent, 0.5)
    for found, of in ((first, scores), (second, lent), (told.masks(scores, 0.5), scores)):
        assert all(
            torch.equal(mask, kept.bool()) for mask, kept in zip(found, global_score_masks(of, 0.5), strict=True)
        )

"""Pruned weights that are drawn anew or recycled while the scores over them are trained."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import (
    Redraw,
    binarize_weights,
    binary_weights,
    create_model,
    fix_masks,
    initial_masks,
    set_compute,
    sparse,
)
from mpt_bihalf.parametrization import binary_layers
from tests.reference import one_line_error

MPT = ["mpt-sign", "mpt-bihalf", "mpt-balanced"]


def net(method: str, rate: float = 0.7, **options: Any) -> nn.Module:
    return binarize_weights(create_model("conv2", 10, 1, 8, seed=0, width=0.5), method, rate, seed=0, **options)


def latents(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, _, weight in binary_layers(model)}


def images(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 10


@pytest.mark.parametrize("init", ["kaiming_normal", "signed_constant", "equal_bits"])
@pytest.mark.parametrize("scope", ["layer", "filter", "global"])
@pytest.mark.parametrize("method", MPT)
@pytest.mark.parametrize("rule", ["iterand", "recycle"])
def test_the_outputs_of_the_step_are_the_same_bits(rule: str, method: str, scope: str, init: str) -> None:
    if method == "mpt-balanced" and (scope != "layer" or rule == "recycle"):
        return
    model = net(method, scope=scope, init=init)
    redraw, (x, _) = Redraw(model, rule, every=1, share=0.5, seed=0, init=init, epoch_steps=1), images()
    before, B, W = model(x), binary_weights(model), latents(model)
    redraw.before_step(1)
    now = latents(model)
    assert torch.equal(model(x), before)
    assert all(torch.equal(B[name], b) for name, b in binary_weights(model).items())
    changed = {name: W[name] != w for name, w in now.items()}
    assert all(of_layer.any() for of_layer in changed.values())
    assert not any((of_layer & (B[name] != 0)).any() for name, of_layer in changed.items())


def test_each_pruned_weight_is_redrawn_with_the_probability_asked_and_half_of_them_change_sign() -> None:
    model = binarize_weights(nn.Sequential(nn.Linear(1000, 400, bias=False)), "mpt-sign", 0.6, seed=0)
    W, B = latents(model)["0"], binary_weights(model)["0"]
    Redraw(model, "iterand", seed=3).before_step(299)
    now = latents(model)["0"]
    pruned = int((B == 0).sum())
    redrawn = now != W
    assert abs(int(redrawn.sum()) - 0.1 * pruned) <= 4 * (pruned * 0.1 * 0.9) ** 0.5
    turned = int((now.sign() != W.sign())[redrawn].sum())
    assert abs(turned - redrawn.sum() / 2) <= 4 * (int(redrawn.sum()) / 4) ** 0.5
    assert now[redrawn].std() == pytest.approx((2 / (0.4 * 1000)) ** 0.5, rel=0.02)
    assert not torch.isin(now[redrawn], W).all()


def test_mpt_balanced_permutes_within_the_filter() -> None:
    model = net("mpt-balanced")
    W, B = latents(model), binary_weights(model)
    Redraw(model, "iterand", every=1, share=0.9, seed=0).before_step(0)
    for name, now in latents(model).items():
        assert torch.equal(now.flatten(1).sort(1).values, W[name].flatten(1).sort(1).values)
        assert (now != W[name]).any()
        assert torch.equal(binary_weights(model)[name], B[name])


def test_a_redrawn_weight_would_turn_a_kept_sign_of_mpt_balanced() -> None:
    """W = .1 .2 .3 .4, the first pruned: at .9 in its place the signs - - + + would become + - - +."""
    model = binarize_weights(nn.Sequential(nn.Linear(4, 1, bias=False)), "mpt-balanced", 0.5, seed=0)
    with torch.no_grad():
        model[0].weight = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        model[0].parametrizations.weight[0].scores.copy_(torch.tensor([[0.0, 1.0, 0.5, 2.0]]))  # type: ignore[index, union-attr]
    B = binary_weights(model)["0"]
    assert B.tolist() == [[0, -1, 0, 1]]
    for step in range(20):
        Redraw(model, "iterand", every=1, share=1.0, seed=0).before_step(step)
        assert torch.equal(binary_weights(model)["0"], B)
        assert sorted(latents(model)["0"][0].tolist()) == sorted(torch.tensor([0.1, 0.2, 0.3, 0.4]).tolist())


def test_recycled_weights_are_those_of_the_best_scored_rank_by_rank() -> None:
    model = binarize_weights(nn.Sequential(nn.Linear(5, 2, bias=False)), "mpt-sign", 0.5, seed=0)
    S = torch.tensor([[0.3, -0.1, 0.9, 0.2, -0.8], [0.7, 0.05, 0.6, -1.0, 0.4]])
    with torch.no_grad():
        model[0].weight = W = torch.arange(10.0).view(2, 5) + 1
        model[0].parametrizations.weight[0].scores.copy_(S)  # type: ignore[index, union-attr]
    # Lowest: .05 (index 6), .1 (1), .2 (3); highest, ascending: .8 (4), .9 (2), 1 (8).
    Redraw(model, "recycle", every=1, share=0.39, epoch_steps=4).before_step(4)
    expected = W.clone().flatten()
    expected[[6, 1, 3]] = W.flatten()[[4, 2, 8]]
    assert torch.equal(latents(model)["0"].flatten(), expected)
    Redraw(model, "recycle", every=1, share=1.0, epoch_steps=4).before_step(
        4
    )  # no more than are pruned, which are five
    kept = binary_weights(model)["0"] != 0
    assert torch.equal(latents(model)["0"][kept], W[kept])


def test_when_weights_change() -> None:
    model = net("mpt-sign")
    iterand, recycle = Redraw(model), Redraw(model, "recycle", epoch_steps=7)
    assert [step for step in range(1000) if iterand.falls_on(step)] == [299, 599, 899]
    assert [step for step in range(220) if recycle.falls_on(step)] == [70, 140, 210]
    assert (iterand.share, recycle.share) == (0.1, 0.2)
    W = latents(model)
    iterand.before_step(298)
    recycle.before_step(0)
    assert all(torch.equal(W[name], w) for name, w in latents(model).items())


@pytest.mark.parametrize("method", MPT)
def test_what_is_drawn_follows_from_seed_and_step(method: str) -> None:
    found = []
    for seed, step in ((0, 0), (0, 0), (1, 0), (0, 1)):
        model = net(method)
        Redraw(model, every=1, share=0.5, seed=seed).before_step(step)
        found.append(latents(model)["0"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


@pytest.mark.skipif(not sparse.available(), reason="needs the sparse loops")
@pytest.mark.parametrize("method", MPT)
def test_sparse_layers_see_what_was_redrawn(method: str) -> None:
    dense, (x, y) = net(method, 0.8), images()
    quick = set_compute(deepcopy(dense), "sparse")
    for model in (dense, quick):
        redraw = Redraw(model, every=1, share=0.5, seed=0)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for step in range(4):
            redraw.before_step(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(latents(dense).values(), latents(quick).values(), strict=True))
    torch.testing.assert_close(quick(x), dense(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["iterand", "recycle"])
@pytest.mark.parametrize("method", MPT)
def test_on_the_meta_device_nothing_waits(rule: str, method: str) -> None:
    if (rule, method) == ("recycle", "mpt-balanced"):
        return
    with torch.device("meta"):
        model = net(method)
    Redraw(model, rule, every=1, epoch_steps=1).before_step(1)


def test_layers_that_share_a_weight_are_redrawn_once() -> None:
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    model = binarize_weights(nn.Sequential(first, nn.ReLU(), second), "mpt-sign", 0.5, seed=0)
    Redraw(model, every=1, share=1.0).before_step(0)
    assert torch.equal(model[0].weight, model[2].weight)


def test_what_cannot_be_is_told_in_one_line() -> None:
    fixed = net("mpt-sign", learn_mask=False)
    plain = binarize_weights(create_model("conv2", 10, 1, 8, seed=0, width=0.1), "bihalf", seed=0)
    fix_masks(plain, initial_masks(plain, "random", 0.5))
    for told, do in {
        "unknown redraw 'x'; known: iterand, recycle": lambda: Redraw(net("mpt-sign"), "x"),
        "redraw_every must be a whole number of at least 0, not 1.5": lambda: Redraw(
            net("mpt-sign"),
            every=1.5,  # type: ignore[arg-type]
        ),
        "redraw_every must be a whole number of at least 0": lambda: Redraw(net("mpt-sign"), every=-1),
        "redraw_share must lie": lambda: Redraw(net("mpt-sign"), share=1.5),
        "unknown init 'keep'": lambda: Redraw(net("mpt-sign"), init="keep"),
        "recycle counts epochs: say epoch_steps": lambda: Redraw(net("mpt-sign"), "recycle"),
        "recycle copies weights, and the signs of mpt-balanced": lambda: Redraw(
            net("mpt-balanced"), "recycle", epoch_steps=1
        ),
        "no layer has scores that are trained": lambda: Redraw(fixed),
        "no layer has scores": lambda: Redraw(plain),
    }.items():
        with one_line_error(told):
            do()

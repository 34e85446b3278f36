"""Learned scales, penalties, and what is done to latent weights after a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import METHODS, PENALTIES, SCALES, Layer, StepRules, bake_weights, binarize_weights, binary_weights
from mpt_bihalf.gradients import of_learned_scale
from mpt_bihalf.parametrization import binary_layers
from mpt_bihalf.penalties import r1
from mpt_bihalf.scales import filter_median
from mpt_bihalf.training import Run, train, train_step
from mpt_bihalf.training.finished import finished_model
from mpt_bihalf.training.run_data import load_run_data
from tests.reference import one_line_error

ROW = torch.tensor([[0.5, -0.2, 0.1, -1.5]], dtype=torch.float64)


def latent_of(layer: nn.Module) -> Any:
    return layer.parametrizations.weight.original  # type: ignore[union-attr]


def part_of(layer: nn.Module) -> Any:
    return layer.parametrizations.weight[0]  # type: ignore[union-attr, index]


def test_penalties_by_example() -> None:
    half = torch.tensor(0.5, dtype=torch.float64)
    assert PENALTIES["r1"](ROW, half, None).item() == pytest.approx(1.7, abs=1e-12)
    assert PENALTIES["r2"](ROW, half, None).item() == pytest.approx(1.25, abs=1e-12)
    alpha = half.clone().requires_grad_()
    (of_alpha,) = torch.autograd.grad(PENALTIES["r2"](ROW, alpha, None), alpha)
    assert of_alpha.item() == pytest.approx(-0.6, abs=1e-12)
    assert filter_median(Layer(ROW), None).item() == pytest.approx(0.35, abs=1e-12)
    assert SCALES["l1-filter"](Layer(ROW), None).item() == pytest.approx(0.575, abs=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", PENALTIES)
def test_the_gradients_of_a_penalty_are_its_closed_form(name: str, masked: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 9, dtype=torch.float64, generator=generator)
    weight[0, 0], weight[1, :2] = 0, torch.tensor([0.7, -0.7])  # on the kinks
    alpha = torch.full((5, 1), 0.7, dtype=torch.float64)
    mask = torch.rand(5, 9, generator=generator) < 0.6 if masked else None
    w, a = weight.clone().requires_grad_(), alpha.clone().requires_grad_()
    of_w, of_a = torch.autograd.grad(PENALTIES[name](w, a, mask), (w, a))
    distance = (alpha - weight.abs()) * (1.0 if mask is None else mask)
    slope = distance.sign() if name == "r1" else 2 * distance
    assert torch.allclose(of_w, -slope * weight.sign()) and torch.allclose(of_a, slope.sum(1, keepdim=True))


@pytest.mark.parametrize(("name", "best"), [("r1", "learned-median"), ("r2", "learned-l1-filter")])
def test_a_scale_begins_where_its_penalty_is_least(name: str, best: str) -> None:
    weight = torch.randn(4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(4, 11, generator=torch.Generator().manual_seed(1)) < 0.7
    alpha = SCALES[best](Layer(weight), mask)
    for row, kept, at in zip(weight, mask, alpha, strict=True):
        least = PENALTIES[name](row, at, kept)
        assert all(PENALTIES[name](row, at + step, kept) > least - 1e-12 for step in (-0.01, 0.01))
    own = {"r1": "learned-median", "r2": "learned-l1-filter"}
    assert Run(method="bnn+", penalty=name).scale == own[name]
    assert Run(method="bnn+", penalty=name, scale="learned").scale == "learned"
    assert Run(method="sign", penalty=name).scale == "kaiming"


def test_the_median_of_what_is_kept() -> None:
    mask = torch.tensor([[True, True, False, True]])
    assert filter_median(Layer(ROW), mask).item() == 0.5
    assert filter_median(Layer(ROW), torch.zeros_like(mask)).item() == 0
    assert filter_median(Layer(ROW.half()), None).dtype == torch.float16


@pytest.mark.parametrize("scale", ["learned", "learned-l1-filter", "learned-median"])
@pytest.mark.parametrize("method", ["sign", "bihalf", "mpt-bihalf", "mpt-balanced", "magnitude-sign", "bop"])
def test_a_learned_scale_gets_the_sum_of_its_filter_s_gradients(method: str, scale: str) -> None:
    layer: Any = binarize_weights(nn.Linear(12, 5, bias=False), method, prune_rate=0.5, scale=scale, seed=0)
    part, g = part_of(layer), torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    start = {"learned": "kaiming", "learned-l1-filter": "l1-filter"}.get(scale)
    binary = binary_weights(layer)[""]
    of = Layer(latent_of(layer).detach())
    kept = binary != 0
    begins = SCALES[start](of, kept) if start else filter_median(of, kept)
    assert part.alpha.shape == (5, 1) and torch.allclose(part.alpha, begins.expand(5, 1))
    assert part.alpha.requires_grad and torch.allclose(layer.weight, part.alpha * binary)
    (layer.weight * g).sum().backward()
    assert torch.allclose(part.alpha.grad, (g * binary).sum(1, keepdim=True), atol=1e-6)
    with torch.no_grad():
        part.alpha[0], part.alpha[1] = -0.25, 0.0
    part.alpha.grad = None
    assert torch.equal(binary_weights(layer)[""], binary)  # a scale turns no sign
    assert torch.allclose(layer.weight[0], 0.25 * binary[0]) and not layer.weight[1].any()
    (layer.weight * g).sum().backward()
    sums = (g * binary).sum(1, keepdim=True)
    sums[0] *= -1
    assert torch.allclose(part.alpha.grad, sums, atol=1e-6)
    x = torch.randn(3, 12)
    assert torch.equal(bake_weights(layer)(x), layer(x))


def test_a_filter_without_a_weight_begins_as_if_it_had_them_all() -> None:
    weight = torch.cat([torch.full((1, 6), 1e-3), torch.ones(2, 6)])
    layer = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    binarize_weights(layer, "magnitude-sign", prune_rate=1 / 3, init="keep", scale="learned-l1-filter")
    assert torch.allclose(part_of(layer).alpha.flatten(), torch.tensor([1e-3, 1, 1]))


def test_layers_that_share_a_weight_share_its_scale() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model: Any = binarize_weights(Twice(), "sign", scale="learned", seed=0)
    assert part_of(model.a).alpha is part_of(model.b).alpha


def test_the_gradient_asks_for_a_learned_scale() -> None:
    with pytest.raises(AssertionError, match="no learned scale"):
        of_learned_scale(ROW, Layer(ROW), ROW > 0)


def test_what_is_done_after_a_step() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 5))
    binarize_weights(model, "sign", seed=0)
    before = [weight.detach().clone().mul_(3) for _, _, weight in binary_layers(model)]
    for (_, _, weight), value in zip(binary_layers(model), before, strict=True):
        weight.data.copy_(value)
    StepRules(model, clip_weights=True).after_step()
    for (_, _, weight), value in zip(binary_layers(model), before, strict=True):
        assert torch.equal(weight, value.clamp(-1, 1)) and (value.abs() > 1).any()
        weight.data.copy_(value)
    StepRules(model, centre=True, clip_weights=True).after_step()
    for (_, _, weight), value in zip(binary_layers(model), before, strict=True):
        assert torch.equal(weight, (value - value.mean(1, keepdim=True)).clamp(-1, 1))
    assert StepRules(model).penalty() == 0.0
    with one_line_error("no layer has latent weights that are trained"):
        StepRules(binarize_weights(nn.Linear(4, 5), "mpt-sign"), clip_weights=True)
    with one_line_error("penalty_lambda must be a finite number of at least 0, not -1"):
        StepRules(model, penalty_lambda=-1)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("mask", [None, METHODS["magnitude-sign"].mask])
@pytest.mark.parametrize("scale", ["learned", "l1", "one"])
def test_a_step_adds_the_penalty_once(penalty: str, mask: Any, scale: str) -> None:
    """However often a layer is used; of a scale that is not learned alpha is a constant."""
    method = replace(METHODS["sign"], mask=mask, penalty=PENALTIES[penalty], scale=SCALES[scale])
    model = binarize_weights(nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12)), method, 0.5, seed=0)
    model.append(model[2])  # used twice
    x, y = torch.randn(4, 12), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = {}
    for rules in (None, StepRules(model, penalty_lambda=0.25)):
        totals = train_step(model, optimizer, x, y, rules=rules)
        found[rules is None] = totals, [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert torch.equal(found[True][0], found[False][0])  # the figures are of the data alone
    extra = [one - other for one, other in zip(found[False][1], found[True][1], strict=True)]
    by_hand = []
    for _, part, weight in binary_layers(model):
        binary, alpha = part.scaled_binary(weight)
        w, a = weight.detach().clone().requires_grad_(), alpha.detach().clone().requires_grad_()
        (0.25 * PENALTIES[penalty](w, a, binary != 0 if mask else None)).backward()
        by_hand.append((w.grad, a.grad))
    of = dict(zip([id(p) for p in model.parameters() if p.grad is not None], extra, strict=True))
    for (_, part, weight), (of_w, of_a) in zip(binary_layers(model), by_hand, strict=True):
        assert torch.allclose(of[id(weight)], of_w, atol=1e-5)
        assert part.alpha is None or torch.allclose(of[id(part.alpha)], of_a, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_keeps_its_weights_within_the_bounds(precision: str, tmp_path: Path) -> None:
    settings: Any = {"model": "conv2", "width": 0.125, "epochs": 1, "batch_size": 100, "lr": 0.2, "device": "cpu"}
    settings |= {"threads": 1, "compute": "dense", "precision": precision, "image_size": 8}
    run = Run(method="sign", scale="one", latent_gradient="clipped-closed", clip_weights=True, centre=True, **settings)
    train(run, tmp_path, callbacks=[])
    model, _ = finished_model(run, tmp_path, load_run_data(run))
    weights = [weight for _, _, weight in binary_layers(model)]
    assert max(weight.abs().max() for weight in weights) == 1
    free = Run(method="sign", scale="one", latent_gradient="clipped-closed", **settings)
    train(free, tmp_path / "free", callbacks=[])
    other, _ = finished_model(free, tmp_path / "free", load_run_data(free))
    assert max(weight.abs().max() for _, _, weight in binary_layers(other)) > 1


def test_binary_connect_is_a_composition() -> None:
    """w = sign(W), dL/dW = g, and W within [-1, 1]."""
    layer = binarize_weights(nn.Linear(6, 4, bias=False), "sign", scale="one", latent_gradient="unscaled", seed=0)
    rules, optimizer = StepRules(layer, clip_weights=True), torch.optim.SGD(layer.parameters(), lr=2.0)
    latent, g = latent_of(layer), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    before = latent.detach().clone()
    assert torch.equal(layer.weight, torch.where(before >= 0, 1.0, -1.0))
    (layer.weight * g).sum().backward()
    optimizer.step()
    rules.after_step()
    assert torch.equal(latent, (before - 2.0 * g).clamp(-1, 1))


def test_dorefa_is_a_composition() -> None:
    """w = E abs(W) sign(W), one mean a layer, dL/dW = g."""
    layer = binarize_weights(nn.Linear(6, 4, bias=False), "sign", scale="l1", latent_gradient="unscaled", seed=0)
    latent, g = latent_of(layer), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer.weight, latent.abs().mean() * torch.where(latent >= 0, 1.0, -1.0))
    (layer.weight * g).sum().backward()
    assert torch.equal(latent.grad, g)


def test_rules_that_a_run_cannot_follow_are_refused() -> None:
    for fields, why in (
        (
            {"method": "mpt-sign", "clip_weights": True},
            "clip_weights is for methods that train latent weights, and mpt-",
        ),
        ({"method": "bop", "centre": True}, "centre is for methods that train latent weights, and bop trains signs"),
        ({"method": "mpt-bihalf", "penalty": "r1"}, "penalty is for methods that train latent weights"),
        ({"method": "dense", "penalty": "r2"}, "penalty is for methods that train latent weights, and dense has none"),
        ({"penalty": "r3"}, "unknown penalty 'r3'; known: none, r1, r2"),
        (
            {"method": "sign", "penalty_lambda": 0.5},
            "penalty_lambda is for a penalty, and sign has none: say --penalty",
        ),
        ({"method": "bnn+", "penalty": "none", "penalty_lambda": 0.5}, "penalty_lambda is for a penalty"),
        ({"method": "bnn+", "penalty_lambda": -1.0}, "penalty_lambda must be a finite number of at least 0"),
    ):
        with one_line_error(why):
            Run(**fields)  # type: ignore[arg-type]
    assert Run(method="bnn+", penalty="none").penalty == "none"
    with one_line_error("it can have no penalty on them"):
        replace(METHODS["mpt-sign"], penalty=r1)


def test_the_threshold_of_abc_at_one_half() -> None:
    from mpt_bihalf import ACTIVATION_GRADIENTS, BinaryActivation

    act = BinaryActivation("abc")
    x = torch.tensor([-0.1, 0, 0.3, 0.5, 0.499999, 1, 1.1], requires_grad=True)
    for through in (act, torch.compile(act, backend="aot_eager")):
        y = through(x)
        assert y.tolist() == [-1, -1, -1, 1, -1, 1, 1]
        (of_x,) = torch.autograd.grad((y * torch.arange(1.0, 8)).sum(), x)
        assert of_x.tolist() == [0, 2, 3, 4, 5, 6, 0]
    assert torch.equal(torch.jit.script(act)(x), act(x)) and torch.equal(torch.jit.trace(act, x)(x), act(x))
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert (act(normal) > 0).float().mean().item() == pytest.approx(0.3085, abs=0.004)
    assert repr(act) == "BinaryActivation(abc)" and ACTIVATION_GRADIENTS["abc"].threshold == 0.5  # type: ignore[attr-defined]

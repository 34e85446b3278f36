"""RBNN: latent weights rotated towards their signs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import cos, pi, sin, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import (
    LATENT_GRADIENTS,
    MASKS,
    METHODS,
    Layer,
    Rotation,
    StepRules,
    bake_weights,
    binarize_weights,
    binary_weights,
    create_model,
    set_progress,
)
from mpt_bihalf.gradients import Rbnn
from mpt_bihalf.parametrization import find_nan
from mpt_bihalf.rotation import sides
from mpt_bihalf.training import Run
from mpt_bihalf.training.build import build_network, step_rules
from tests.reference import one_line_error

W = torch.tensor([[0.4, -0.1, 0.3, -0.8]], dtype=torch.float64)
OF_B = torch.tensor([[1, -2, 0.5, 1]], dtype=torch.float64)


def turned(angle: float) -> Tensor:
    return torch.tensor([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]], dtype=torch.float64)


def example(code: bool = False) -> Rotation:
    rotation = Rotation(W, code)
    rotation.r1.copy_(turned(0.3))
    rotation.r2.copy_(turned(0.7))
    with torch.no_grad():
        rotation.angle.fill_(0.9)
    return rotation


def close(found: Tensor, expected: list[float]) -> bool:
    return torch.allclose(found.flatten(), torch.tensor(expected, dtype=found.dtype), rtol=0, atol=0.51e-6)


def test_the_example() -> None:
    rotation, w = example(), W.clone().requires_grad_()
    x = rotation.standardised(w)
    v = rotation(w)
    assert close(v.detach(), [0.516060, -0.810358, -0.289396, -1.256812])
    through = LATENT_GRADIENTS["rbnn"](OF_B, Layer(v.detach(), progress=2 / 3), v >= 0, v.new_ones(()))  # t = 1
    slope = (sqrt(2) - v.detach().abs()).clamp(min=0)
    assert torch.allclose(through, OF_B * slope, rtol=1e-12)
    of_w, of_angle = torch.autograd.grad(v, (w, rotation.angle), through, retain_graph=True)
    assert close(of_w, [0.946520, -1.835915, 0.135742, 0.753653]) and close(of_angle, [0.066680])
    by = rotation.angle.detach().sin()
    of_x = (1 - by) * through.view_as(x) + by * rotation.r1 @ through.view_as(x) @ rotation.r2.T
    assert torch.allclose(torch.autograd.grad(x, w, of_x)[0], of_w)
    assert close(of_x, [1.214803, -0.631672, 0.707003, 0.315443])


def test_the_example_by_the_published_code() -> None:
    rotation, w = example(code=True), W.clone().requires_grad_()
    x = rotation.standardised(w)
    by = rotation.angle.sin().abs().view(-1, 1, 1)
    v = (x + by * ((rotation.r1.T @ x @ rotation.r2).detach() - x)).view_as(w)
    assert torch.equal(v, rotation(w))
    through = LATENT_GRADIENTS["rbnn"](OF_B, Layer(v.detach(), progress=2 / 3), v >= 0, v.new_ones(()))
    (of_x,) = torch.autograd.grad(v, x, through, retain_graph=True)
    assert close(of_x, [0.194606, -0.261678, 0.121859, 0.034105])
    of_w, of_angle = torch.autograd.grad(rotation(w), (w, rotation.angle), through)
    (expected,) = torch.autograd.grad(x, w, of_x)
    assert torch.allclose(of_w, expected) and close(of_angle, [0.066680])
    with torch.no_grad():
        rotation.angle.fill_(pi / 2)  # where it begins
    (of_w,) = torch.autograd.grad(rotation(w), w, through)
    assert of_w.abs().max() < 1e-15


@pytest.mark.parametrize(
    ("n", "expected"), [(27, (3, 9)), (576, (24, 24)), (1152, (32, 36)), (4608, (64, 72)), (7, (1, 7))]
)
def test_sides(n: int, expected: tuple[int, int]) -> None:
    assert sides(n) == expected


@pytest.mark.parametrize("shape", [(20, 4, 3, 3), (3, 7), (50, 32)])
def test_rotations_are_orthogonal_and_their_objective_never_falls(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = Rotation(weight)
    rotation.draw(torch.Generator().manual_seed(1))
    before = rotation.r1.clone()
    assert not torch.allclose(before, torch.eye(len(before)).double()) or len(before) == 1
    x = rotation.standardised(weight)
    objectives: list[float] = []
    for _ in range(4):
        for r in (rotation.r1, rotation.r2):
            assert torch.allclose(r @ r.T, torch.eye(len(r), dtype=r.dtype), atol=1e-10)
        y = rotation.r1.T @ x @ rotation.r2
        b = torch.where(y >= 0, 1.0, -1.0).double()
        sums = (b @ rotation.r2.T @ x.mT).sum(0)
        found = [float(value) for value in rotation.rotate(weight, rounds=1)]
        assert found[0] == pytest.approx(float((b * y).sum()))
        assert found[1] == pytest.approx(float(torch.linalg.svdvals(sums).sum()))
        of_r2 = (x.mT @ rotation.r1 @ b).sum(0)
        assert found[2] == pytest.approx(float(torch.linalg.svdvals(of_r2).sum()))
        objectives += found
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(objectives))
    assert objectives[-1] > objectives[0]
    with torch.no_grad():
        rotation.angle.fill_(pi / 2)
    assert torch.allclose(rotation(weight).view_as(x), rotation.r1.T @ x @ rotation.r2)


def test_random_rotations_are_as_likely_in_every_direction() -> None:
    rotation, generator = Rotation(torch.zeros(1, 9)), torch.Generator().manual_seed(0)
    entries = []
    for _ in range(2_000):
        rotation.draw(generator)
        entries.append(rotation.r1.clone())
    mean, square = torch.stack(entries).mean(0), torch.stack(entries).square().mean(0)
    assert mean.abs().max() < 4 * (1 / 3 / 2_000) ** 0.5  # without the signs of QR's diagonal it is not 0
    assert (square - 1 / 3).abs().max() < 0.03


def test_equal_weights_are_no_fault() -> None:
    rotation = Rotation(torch.ones(2, 6))
    assert torch.equal(rotation(torch.ones(2, 6)), torch.zeros(2, 6))


@pytest.mark.parametrize("method", ["rbnn", "rbnn-bihalf"])
def test_a_layer_is_that_of_its_formula(method: str) -> None:
    layer: Any = binarize_weights(nn.Conv2d(4, 6, 3, bias=False).double(), method, p_pos=0.25, seed=0)
    part, latent = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    assert torch.equal(part.before.angle, torch.full((6,), pi / 2, dtype=torch.float64))
    assert torch.allclose(part.alpha, latent.abs().mean((1, 2, 3), keepdim=True))
    set_progress(layer, 0.5)
    v = part.before(latent)
    rows = v.detach().flatten(1)
    positive = rows >= 0 if method == "rbnn" else rows >= rows.sort(1).values[:, 27:28]  # the upper quarter of 36
    binary = torch.where(positive, 1.0, -1.0).double().view_as(latent)
    assert torch.equal(binary_weights(layer)[""], binary) and torch.allclose(layer.weight, part.alpha * binary)
    g = torch.randn(latent.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (layer.weight * g).sum().backward()
    t = 10**-0.5
    slope = (sqrt(2) * t - t * t * v.detach().abs()).clamp(min=0) / t
    expected = torch.autograd.grad(v, (latent, part.before.angle), part.alpha.detach() * g * slope)
    assert torch.allclose(latent.grad, expected[0]) and torch.allclose(part.before.angle.grad, expected[1])
    assert torch.allclose(part.alpha.grad, (g * binary).sum((1, 2, 3), keepdim=True))
    compiled = torch.compile(lambda: layer.weight, backend="aot_eager")
    kept = latent.grad.clone(), part.before.angle.grad.clone()
    layer.zero_grad()
    (compiled() * g).sum().backward()
    assert torch.allclose(latent.grad, kept[0]) and torch.allclose(part.before.angle.grad, kept[1])
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert torch.equal(bake_weights(layer)(x), layer(x))


def test_counts() -> None:
    with torch.device("meta"):
        model = create_model("resnet18", 1000, image_size=224, activations="rbnn")
        image = torch.empty(1, 3, 224, 224)
        binarize_weights(model, "rbnn", skip=("first", "last", "downsample"), example=image)
    extra = {name: p.numel() for name, p in model.named_parameters() if name.endswith((".angle", ".alpha"))}
    held = {name: b.numel() for name, b in model.named_buffers() if name.endswith((".r1", ".r2"))}
    assert sum(extra.values()) == 7_680 and sum(held.values()) == 61_312


def test_rotations_are_turned_before_the_first_step_of_an_epoch() -> None:
    run = Run(method="rbnn", model="conv2", width=0.0625, image_size=8)
    model = build_network(run, 10, 1, 8)
    rules = step_rules(run, model, epoch_steps=3)
    assert rules is not None
    turns = []
    for step in range(7):
        before = {name: b.clone() for name, b in model.named_buffers() if name.endswith((".r1", ".r2"))}
        rules.before_step(step)
        after = dict(model.named_buffers())
        turns.append(any(not torch.equal(value, after[name]) for name, value in before.items()))
    assert turns == [True, False, False, True, False, False, True]
    never = StepRules(model)
    held = {name: b.clone() for name, b in model.named_buffers()}
    never.before_step(0)
    assert all(torch.equal(value, held[name]) for name, value in model.named_buffers())


def test_rotations_are_drawn_by_the_seed() -> None:
    of = [binarize_weights(nn.Linear(9, 4), "rbnn", seed=seed).state_dict() for seed in (0, 0, 1)]
    same = {name: torch.equal(value, of[1][name]) for name, value in of[0].items() if name.endswith((".r1", ".r2"))}
    assert all(same.values()) and len(same) == 2
    assert not torch.equal(of[0]["parametrizations.weight.0.before.r1"], of[2]["parametrizations.weight.0.before.r1"])


def test_the_published_code_s_gradient_is_a_field_of_the_run() -> None:
    for gradient, trained in (("exact", True), ("code", False)):
        run = Run(method="rbnn", rotation_gradient=gradient, model="conv2", width=0.0625, image_size=8)  # type: ignore[arg-type]
        model = build_network(run, 10, 1, 8)
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        gradients = [p.grad for name, p in model.named_parameters() if name.endswith("original")]
        assert all((g.abs().max() > 1e-9) == trained for g in gradients)  # type: ignore[union-attr]
    with one_line_error("rotation_gradient is for rbnn, and sign rotates nothing"):
        Run(method="sign", rotation_gradient="code")
    assert Run(method="rbnn-bihalf", rotation_gradient="code").rotation_gradient == "code"


def test_the_slope_is_wide_at_first_and_narrow_later() -> None:
    x = torch.tensor([0.0, 0.05, 1.0, 100.0, 142.0])
    wide = torch.tensor([sqrt(2), sqrt(2) - 5e-4, sqrt(2) - 0.01, sqrt(2) - 1, 0])
    assert torch.allclose(Rbnn.slope(x, 0.01) * 100, wide, atol=1e-5)
    assert Rbnn.sharpness(1.0) == pytest.approx(10) and Rbnn.sharpness(0.0) == pytest.approx(0.01)
    assert Rbnn.slope(x, 10.0).tolist() == pytest.approx([10 * sqrt(2), 10 * sqrt(2) - 5, 0, 0, 0])
    assert METHODS["rbnn"].latent_gradient == LATENT_GRADIENTS["rbnn"]


@pytest.mark.parametrize("value", [0.1, 0.3, -0.7, 1e-30])
@pytest.mark.parametrize("size", [9, 27, 576])
def test_a_filter_of_equal_weights_is_0_and_gets_a_small_gradient(value: float, size: int) -> None:
    weight = torch.full((2, size), value)
    weight[1] = torch.randn(size, generator=torch.Generator().manual_seed(0))
    weight.requires_grad_()
    rotation = Rotation(weight)
    assert not rotation.standardised(weight)[0].any()
    rotation(weight).square().sum().backward()
    assert not weight.grad[0].any() and weight.grad[1].isfinite().all()


@pytest.mark.parametrize("change", ["double", "bfloat16", "half"])
def test_layers_of_one_weight_turn_together_in_another_dtype(change: str) -> None:
    a, b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    b.weight = a.weight
    model = getattr(binarize_weights(nn.Sequential(a, nn.Tanh(), b), "rbnn", seed=0), change)()
    rules = StepRules(model, epoch_steps=1)
    for step in range(2):
        rules.before_step(step)
        assert torch.equal(model[0].weight, model[2].weight)
    r = model[0].parametrizations.weight[0].before.r1.double()
    assert torch.allclose(r @ r.T, torch.eye(len(r), dtype=torch.float64), atol=1e-12 if change == "double" else 2e-2)


def test_of_one_weight_in_its_own_dtype_the_rotation_is_turned_once() -> None:
    a, b, alone = (nn.Linear(6, 6, bias=False) for _ in range(3))
    b.weight = a.weight
    model = binarize_weights(nn.Sequential(a, nn.Tanh(), b), "rbnn", seed=0)
    binarize_weights(alone, "rbnn", seed=0)
    for of in (model, alone):
        StepRules(of, epoch_steps=1).before_step(0)
    assert torch.equal(model[0].weight, alone.weight) and torch.equal(model[2].weight, alone.weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "angle"])
def test_what_makes_nan_of_the_rotated_weight_is_found(bad: float, where: str) -> None:
    model = binarize_weights(nn.Sequential(nn.Linear(6, 6)), "rbnn-bihalf", seed=0)
    part = model[0].parametrizations.weight
    with torch.no_grad():
        (part.original if where == "weight" else part[0].before.angle).view(-1)[3] = bad
    assert find_nan(model) == "0"
    with pytest.raises(ValueError, match="layer '0' has NaN"):
        binary_weights(model)


def test_a_learned_scale_begins_under_the_mask_of_what_is_rotated() -> None:
    method = replace(METHODS["rbnn"], name="masked", mask=MASKS["magnitude"])
    layer = binarize_weights(nn.Linear(64, 4, bias=False), method, prune_rate=0.9, seed=0)
    part = layer.parametrizations.weight
    kept = layer.weight != 0
    assert kept.sum() == 256 - 230
    mean = (part.original.abs() * kept).sum(1) / kept.sum(1)
    torch.testing.assert_close(part[0].alpha.flatten()[kept.any(1)], mean[kept.any(1)])

"""With loss = sum(w * C), the gradient g at the weight in use is C: what reaches W or S is then a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import LATENT_GRADIENTS, METHODS, SCORE_GRADIENTS, Ede, binarize_weights, set_progress
from tests.reference import ROTATED, SCORE_METHODS, decide, kaiming_scale, l1_scale, one_line_error, scale_of

WEIGHT_METHODS = [name for name in METHODS if name not in (*SCORE_METHODS, *ROTATED, "dense")]
SCALED = [name for name in WEIGHT_METHODS if METHODS[name].latent_gradient is LATENT_GRADIENTS["scaled"]]
SCOPES = ["layer", "filter", "global"]


def layer_with(method: str, device: torch.device, p_pos: float = 0.35, **choices: str) -> tuple[nn.Conv2d, Tensor]:
    """A binarized float64 layer with zeros of both signs among its W and S, and the C of the loss."""
    layer = nn.Conv2d(4, 5, 3, dtype=torch.float64, device=device)
    binarize_weights(layer, method, prune_rate=0.4, p_pos=p_pos, seed=0, **choices)
    with torch.no_grad():
        for tensor in (latent_of(layer), scores_of(layer)):
            if tensor is not None:
                tensor[:, 0, 0, 0], tensor[:, 1, 1, 1] = 0.0, -0.0
                tensor[2, 3] = 0.0
        layer.parametrizations.weight[0].begin_scale(latent_of(layer))  # one that is learned
    return layer, torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)


def latent_of(layer: nn.Module) -> Tensor:
    return layer.parametrizations.weight.original


def scores_of(layer: nn.Module) -> Tensor | None:
    return layer.parametrizations.weight[0].scores


def sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


@pytest.mark.parametrize("rule", ["scaled", "unscaled"])
@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_latent_weights_get_the_gradient_of_the_weight_in_use(method: str, rule: str, device: torch.device) -> None:
    layer, c = layer_with(method, device, latent_gradient=rule)
    mask, _ = decide(method, [latent_of(layer)], [], 0.4, 0.35)[0]
    (layer.weight * c).sum().backward()
    alpha = scale_of(method, latent_of(layer), mask) if rule == "scaled" else 1.0
    assert torch.allclose(latent_of(layer).grad, alpha * c, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", SCALED)
def test_latent_weights_get_the_scaled_gradient_by_default(method: str, device: torch.device) -> None:
    layer, c = layer_with(method, device)
    (layer.weight * c).sum().backward()
    mask, _ = decide(method, [latent_of(layer)], [], 0.4, 0.35)[0]
    assert torch.allclose(
        latent_of(layer).grad, scale_of(method, latent_of(layer).detach(), mask) * c, rtol=1e-12, atol=0
    )


def ede(weight: Tensor, g: Tensor, alpha: Tensor | float, t: float) -> Tensor:
    """The gradient of IR-Net written plainly, the chain through mean and deviation left to autograd."""
    weight = weight.detach().requires_grad_()
    rows = weight.flatten(1)
    x = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
    slope = max(1 / t, 1) * t * (1 - torch.tanh(t * x) ** 2)
    x.backward((slope * (alpha * g).flatten(1)).detach())
    return weight.grad


@pytest.mark.parametrize("t0", [1e-1, 1e-3])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_ede_follows_its_formula_and_schedule(method: str, progress: float, t0: float, device: torch.device) -> None:
    layer, c = layer_with(method, device, latent_gradient=Ede(t0))
    set_progress(layer, progress)
    (layer.weight * c).sum().backward()
    mask, _ = decide(method, [latent_of(layer)], [], 0.4, 0.35)[0]
    t = 10 ** (torch.tensor(t0).double().log10() * (1 - progress) + progress)  # geometric from t0 to 10
    expected = ede(latent_of(layer), c, scale_of(method, latent_of(layer), mask), float(t))
    assert torch.allclose(latent_of(layer).grad, expected, rtol=1e-6, atol=1e-9)


def test_irnet_has_ede_from_a_tenth_to_ten() -> None:
    rule = METHODS["irnet"].latent_gradient
    assert [rule.sharpness(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 1.0, 10.0])
    layer, c = layer_with("irnet", torch.device("cpu"))
    (layer.weight * c).sum().backward()
    mask = torch.ones_like(c, dtype=torch.bool)
    assert torch.allclose(
        latent_of(layer).grad, ede(latent_of(layer), c, scale_of("irnet", latent_of(layer), mask), 0.1)
    )


def test_ede_of_many_filters_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = binarize_weights(nn.Linear(300, 700, bias=False, dtype=torch.float64), "irnet", seed=0)
    c = torch.randn(700, 300, dtype=torch.float64)
    (layer.weight * c).sum().backward()
    whole = latent_of(layer).grad.clone()
    for filter_ in (0, 436, 437, 699):
        one = binarize_weights(nn.Linear(300, 1, bias=False, dtype=torch.float64), "irnet")
        with torch.no_grad():
            latent_of(one).copy_(latent_of(layer)[filter_ : filter_ + 1])
        (one.weight * c[filter_]).sum().backward()
        assert torch.allclose(latent_of(one).grad[0], whole[filter_], rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 1), (4, 1, 1, 1), (2, 5)])
def test_a_filter_of_equal_weights_has_finite_scale_and_gradient(shape: tuple[int, ...]) -> None:
    layer = nn.Linear(shape[1], shape[0], bias=False) if len(shape) == 2 else nn.Conv2d(1, 4, 1, bias=False)
    nn.init.constant_(layer.weight, 0.25)
    binarize_weights(layer, "irnet", init="keep")
    layer.weight.sum().backward()
    assert layer.weight.eq(1).all() and latent_of(layer).grad.isfinite().all()


def test_ede_refuses_a_scale_of_each_weight() -> None:
    layer = binarize_weights(nn.Linear(4, 6, bias=False), "irnet", scale=lambda weight, mask: weight.abs())
    with one_line_error(r"shape \(6, 1\), not of \(6, 4\)"):
        layer.weight.sum().backward()


def test_t0_must_be_above_zero() -> None:
    for t0 in (0.0, -1.0, float("nan"), float("inf")):
        with one_line_error("t0"):
            Ede(t0)


@pytest.mark.parametrize("scale", ["kaiming", "l1"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("rule", list(SCORE_GRADIENTS))
@pytest.mark.parametrize("method", SCORE_METHODS)
def test_scores_get_the_gradient_by_the_sign_or_would_be_sign(
    method: str, rule: str, scope: str, scale: str, device: torch.device
) -> None:
    layer, c = layer_with(method, device, scope=scope, score_gradient=rule, scale=scale)
    weight, scores = latent_of(layer), scores_of(layer)
    mask, positive = decide(method, [weight], [scores], 0.4, 0.35, scope)[0]
    assert (mask & ~positive).any() and (~mask & ~positive).any() and (~mask & positive).any()
    (layer.weight * c).sum().backward()
    alpha = kaiming_scale(mask) if scale == "kaiming" else l1_scale(weight, mask)
    b = torch.where(positive, 1.0, -1.0)
    magnitude = weight.abs() if rule == "latent" else alpha
    assert torch.allclose(scores.grad, c * b * magnitude * sign(scores), rtol=1e-12, atol=0)
    assert weight.grad is None


@pytest.mark.parametrize("method", SCORE_METHODS)
def test_scores_get_the_latent_gradient_by_default(method: str, device: torch.device) -> None:
    layer, c = layer_with(method, device)
    weight, scores = latent_of(layer), scores_of(layer)
    _, positive = decide(method, [weight], [scores], 0.4, 0.35)[0]
    (layer.weight * c).sum().backward()
    expected = c * torch.where(positive, 1.0, -1.0) * weight.abs() * sign(scores)
    assert torch.allclose(scores.grad, expected, rtol=1e-12, atol=0)


def test_between_the_kept_minus_and_plus_a_score_gets_the_gradient_of_a_minus() -> None:
    layer = binarize_weights(nn.Linear(6, 1, bias=False), "mpt-bihalf", prune_rate=0.667, score_gradient="latent")
    with torch.no_grad():
        latent_of(layer).copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
        scores_of(layer).copy_(torch.tensor([[0.1, 9.0, -0.1, 0.0, -9.0, -0.0]]))
    layer.weight.sum().backward()
    b = torch.tensor([[-1.0, -1, -1, -1, 1, 1]])
    sign_of_scores = torch.tensor([[1.0, 1, -1, 1, -1, 1]])
    assert torch.equal(scores_of(layer).grad, b * sign_of_scores * torch.arange(1.0, 7))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("dense", *ROTATED)])
def test_gradient_of_a_loss_behind_the_layer_is_that_of_a_plain_layer_with_the_same_weight(method: str) -> None:
    layer, _ = layer_with(method, torch.device("cpu"), latent_gradient="unscaled", score_gradient="binary")
    plain = nn.Conv2d(4, 5, 3, dtype=torch.float64)
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    for each in (layer, plain):
        nn.functional.conv2d(x, each.weight).square().sum().backward()
    if method in SCORE_METHODS:
        w, s = plain.weight.detach(), scores_of(layer)
        kept = w != 0
        assert torch.allclose(s.grad[kept], (plain.weight.grad * w * sign(s))[kept], rtol=1e-9)
    else:
        assert torch.allclose(latent_of(layer).grad, plain.weight.grad, rtol=1e-12)


@pytest.mark.parametrize("rate", [0, 0.5])
def test_a_second_backward_pass_adds_to_the_first(rate: float) -> None:
    layer = binarize_weights(nn.Linear(4, 3), "mpt-bihalf", rate, seed=0)
    layer.weight.sum().backward()
    once = scores_of(layer).grad.clone()
    layer.weight.sum().backward()
    assert once.any() and torch.equal(scores_of(layer).grad, 2 * once)


TRAINED = ["sign", "irnet", "bihalf", "mpt-sign", "mpt-bihalf", "mpt-balanced", "magnitude-bihalf"]


@pytest.mark.parametrize("method", TRAINED)
def test_gradients_of_gradients_and_many_at_once_are_those_of_the_formula(method: str) -> None:
    layer = binarize_weights(torch.nn.Linear(300, 300, bias=False), method, 0.5, seed=0)
    real = torch.nn.Linear(300, 4)
    (trained,) = [p for p in layer.parameters() if p.requires_grad]
    x = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    out = real(layer(x)).sum(1)
    each = [torch.autograd.grad(value, trained, retain_graph=True)[0] for value in out]
    at_once = torch.autograd.grad(out, trained, torch.eye(3), is_grads_batched=True, retain_graph=True)[0]
    torch.testing.assert_close(at_once, torch.stack(each))
    # The gradient is linear in the last layer's weights, so along a direction it changes by its value there.
    (first,) = torch.autograd.grad(out[0], trained, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), real.weight)
    assert (second * real.weight).sum().item() == pytest.approx(2 * first.square().sum().item(), rel=1e-4)


def test_a_layer_of_one_weight_takes_its_magnitude() -> None:
    layer = binarize_weights(torch.nn.Linear(1, 1, bias=False), "mpt-sign", 0.0, seed=0)
    with torch.no_grad():
        layer.weight = torch.tensor([[-2.0]])
        layer.parametrizations.weight[0].scores.fill_(1)
    layer(torch.ones(1, 1)).sum().backward()
    assert layer.parametrizations.weight[0].scores.grad.tolist() == [[-2.0]]  # g b abs(W) sign(S), with b = -1

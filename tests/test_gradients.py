"""With loss = sum(w * C), the gradient g at the weight in use is C: what reaches W or S is then a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import LATENT_GRADIENTS, METHODS, SCORE_GRADIENTS, binarize_weights
from tests.reference import SCORE_METHODS, decide, kaiming_scale, l1_scale

WEIGHT_METHODS = [name for name in METHODS if name not in (*SCORE_METHODS, "dense")]
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
    return layer, torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)


def latent_of(layer: nn.Module) -> Tensor:
    return layer.parametrizations.weight.original


def scores_of(layer: nn.Module) -> Tensor | None:
    return layer.parametrizations.weight[0].scores


def sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


@pytest.mark.parametrize("rule", list(LATENT_GRADIENTS))
@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_latent_weights_get_the_gradient_of_the_weight_in_use(method: str, rule: str, device: torch.device) -> None:
    layer, c = layer_with(method, device, latent_gradient=rule)
    mask, _ = decide(method, [latent_of(layer)], [], 0.4, 0.35)[0]
    (layer.weight * c).sum().backward()
    alpha = {"scaled": kaiming_scale(mask), "unscaled": 1.0}[rule]
    assert torch.allclose(latent_of(layer).grad, alpha * c, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_latent_weights_get_the_scaled_gradient_by_default(method: str, device: torch.device) -> None:
    layer, c = layer_with(method, device)
    (layer.weight * c).sum().backward()
    mask, _ = decide(method, [latent_of(layer)], [], 0.4, 0.35)[0]
    assert torch.allclose(latent_of(layer).grad, kaiming_scale(mask) * c, rtol=1e-12, atol=0)


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


@pytest.mark.parametrize("method", [name for name in METHODS if name != "dense"])
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

"""How latent weights and scores begin: with float32 draws, whatever dtype they have themselves."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from .filters import filters

INITS = ("kaiming_normal", "signed_constant", "equal_bits", "all_positive", "keep")


def draw_latent(weight: Tensor, kept: float, init: str, generator: torch.Generator) -> None:
    """Kaiming normal over the `kept` share of the fan-in, drawn where the generator lives: the same on every device."""
    if weight.is_meta:
        return
    if init == "all_positive":  # uniform in [0, 0.001), as the codes of Bi-Real net and ReActNet draw W
        draw = torch.rand(weight.shape, generator=generator, dtype=torch.float32, device=generator.device)
        with torch.no_grad():
            weight.copy_(draw.mul_(1e-3))
        return
    std = sqrt(2 / (kept * weight[0].numel()))
    draw = torch.randn(weight.shape, generator=generator, dtype=torch.float32, device=generator.device)
    if init == "signed_constant":
        draw = torch.where(draw >= 0, draw.new_ones(()), -1)
    elif init == "equal_bits":
        draw = _paired(draw, generator)
    with torch.no_grad():
        weight.copy_(draw.mul_(std))


def _paired(draw: Tensor, generator: torch.Generator) -> Tensor:
    """In each filter half of the draws and their negatives, in random order; a weight left over is barely positive."""
    rows = filters(draw)
    half = rows[:, : rows.shape[1] // 2]
    left_over = half.abs().amin(1, keepdim=True) if half.numel() else rows.abs()
    paired = torch.cat([half, -half, left_over], dim=1)[:, : rows.shape[1]]
    order = torch.rand(rows.shape, generator=generator, dtype=torch.float32, device=generator.device).argsort(1)
    return paired.gather(1, order).view(draw.shape)


def draw_scores(scores: Tensor, generator: torch.Generator) -> None:
    """Kaiming uniform with a = sqrt(5): uniform within 1 / sqrt(fan-in)."""
    if scores.is_meta:
        return
    bound = 1 / sqrt(scores[0].numel())
    draw = torch.rand(scores.shape, generator=generator, dtype=torch.float32, device=generator.device)
    with torch.no_grad():
        scores.copy_(draw.mul_(2 * bound).sub_(bound))

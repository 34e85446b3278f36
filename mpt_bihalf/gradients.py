"""Straight-through rules: what a latent weight or a score gets of the loss gradient at the weight in use.

With w = alpha * B the weight in use and g = dL/dw, a rule maps (g, latent, positive, alpha) to the gradient of the
trained tensor, in its shape, for every weight, kept or pruned. `positive` is True where b, the sign or would-be sign,
is +1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from . import kernels
from .latent import Latent

Gradient: TypeAlias = Callable[[Tensor, Latent, Tensor, Tensor], Tensor]


def scaled(g: Tensor, latent: Latent, positive: Tensor, alpha: Tensor) -> Tensor:
    """dL/dW = alpha g, no clipping (the bi-half authors' code)."""
    return alpha * g


def unscaled(g: Tensor, latent: Latent, positive: Tensor, alpha: Tensor) -> Tensor:
    """dL/dW = g."""
    return g


def latent_scores(g: Tensor, latent: Latent, positive: Tensor, alpha: Tensor) -> Tensor:
    """dL/dS = g b abs(W) sign(S) (Diffenderfer & Kailkhura 2021)."""
    return _signed(g, latent.weight, latent, positive)


def binary_scores(g: Tensor, latent: Latent, positive: Tensor, alpha: Tensor) -> Tensor:
    """dL/dS = g b alpha sign(S), the exact straight-through gradient."""
    return _signed(g, alpha, latent, positive)


def _signed(g: Tensor, factor: Tensor, latent: Latent, positive: Tensor) -> Tensor:
    """g abs(factor) b sign(S), with sign(0) = +1."""
    assert latent.scores is not None, "a score gradient needs scores"
    if latent.scores.is_contiguous():
        g = g.contiguous()  # that of a convolution in channels-last is not
    if factor.numel() in (1, g.numel()) and kernels.suit(g, factor, positive, latent.scores):
        return kernels.score_gradient(g, factor, positive, latent.scores)
    magnitude = g * factor.abs()
    return torch.where(positive == (latent.scores >= 0), magnitude, -magnitude)


LATENT_GRADIENTS: dict[str, Gradient] = {"scaled": scaled, "unscaled": unscaled}
SCORE_GRADIENTS: dict[str, Gradient] = {"latent": latent_scores, "binary": binary_scores}

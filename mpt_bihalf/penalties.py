"""How far latent weights are from the two values that they stand for: what a method adds to the loss.

A penalty maps (weight, alpha, mask) to a sum over the kept weights, a 0-dim tensor by which W and a learned alpha get
their gradients. weight: W [F, ...]; alpha: positive, broadcasts over it; mask: bool in W's shape, None where nothing is
pruned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from . import kernels
from .filters import filters

Penalty: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def r1(weight: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
    """sum M abs(alpha - abs(W)) (Darabi et al. 2018): for fixed W least where alpha is the median of abs(W)."""
    return cast(Tensor, _Distance.apply(weight, alpha, mask, False)[0])


def r2(weight: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
    """sum M (alpha - abs(W))^2 (Darabi et al. 2018): for fixed W least where alpha is the mean of abs(W)."""
    return cast(Tensor, _Distance.apply(weight, alpha, mask, True)[0])


class _Distance(torch.autograd.Function):
    """The sum over kept weights of abs(alpha - abs(W)), or of its square."""

    @staticmethod
    def forward(weight: Tensor, alpha: Tensor, mask: Tensor | None, squared: bool) -> tuple[Tensor, Tensor]:
        rows, alphas, kept = _rows(weight, alpha, mask)
        if rows.numel() and kernels.suit(rows, alphas, kept):
            sums, slopes = kernels.distances(rows, alphas, kept, squared)
        else:
            d = _distance(rows, alphas, kept)
            sums = (d.square() if squared else d.abs()).sum(1)
            slopes = (d.mul_(2) if squared else d.sgn_()).sum(1)
        return sums.sum(), slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        weight, alpha, mask, ctx.squared = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(weight, alpha, mask, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, alpha, mask, slopes = ctx.saved_tensors
        rows, alphas, kept = _rows(weight, alpha, mask)
        if rows.numel() and kernels.suit(rows, alphas, kept, grads[0]):
            of_weight = torch.empty_like(rows)
            kernels.distance_gradient(rows, alphas, kept, ctx.squared, grads[0], of_weight)
        else:
            d = _distance(rows, alphas, kept)
            of_weight = (d.mul_(2) if ctx.squared else d.sgn_()).mul_(rows.sgn()).mul_(-grads[0])
        of_alpha = (slopes * grads[0]).view(-1, *[1] * (weight.dim() - 1)).sum_to_size(alpha.shape)
        return of_weight.view_as(weight), of_alpha, None, None


def _rows(weight: Tensor, alpha: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """W and the mask as rows [F, D], and alpha as [F, 1]."""
    alphas = alpha.expand(len(weight), *[1] * (weight.dim() - 1)).reshape(-1, 1).contiguous()
    return filters(weight), alphas, None if mask is None else filters(mask)


def _distance(rows: Tensor, alphas: Tensor, mask: Tensor | None) -> Tensor:
    d = alphas - rows.abs()
    return d if mask is None else d.mul_(mask)


PENALTIES: dict[str, Penalty] = {"r1": r1, "r2": r2}
# The scale that each is least at, for a learned scale to begin at.
STARTS: dict[str, str] = {"r1": "learned-median", "r2": "learned-l1-filter"}

"""How far latent weights are from the two values that they stand for: what a method adds to the loss.

A penalty maps (weight, alpha, mask) to a sum over the kept weights, a 0-dim tensor by which W and a learned alpha get
their gradients. weight: W [F, ...]; alpha: positive, broadcasts over it; mask: bool in W's shape, None where nothing is
pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from .filters import few_filters, filters

Penalty: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def r1(weight: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
    """sum M abs(alpha - abs(W)) (Darabi et al. 2018): for fixed W least where alpha is the median of abs(W)."""
    return cast(Tensor, _Distance.apply(weight, alpha, mask, False))


def r2(weight: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
    """sum M (alpha - abs(W))^2 (Darabi et al. 2018): for fixed W least where alpha is the mean of abs(W)."""
    return cast(Tensor, _Distance.apply(weight, alpha, mask, True))


class _Distance(torch.autograd.Function):
    """The sum over kept weights of abs(alpha - abs(W)), or of its square; in parts that stay in a cache."""

    @staticmethod
    def forward(weight: Tensor, alpha: Tensor, mask: Tensor | None, squared: bool) -> Tensor:
        parts = [(d.square_() if squared else d.abs_()).sum() for d, *_ in _distances(weight, alpha, mask)]
        return torch.stack(parts).sum() if parts else weight.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        weight, alpha, mask, ctx.squared = inputs
        ctx.save_for_backward(weight, alpha, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, alpha, mask = ctx.saved_tensors
        of_rows, of_weight = [], torch.empty_like(filters(weight))
        for d, w, place in _distances(weight, alpha, mask, of_weight):
            slope = d.mul_(2) if ctx.squared else d.sgn_()
            of_rows.append(slope.sum(1))
            torch.mul(slope, w.sgn(), out=place).mul_(-grads[0])
        of_alpha = None
        if ctx.needs_input_grad[1]:
            sums = torch.cat(of_rows).view(-1, *[1] * (weight.dim() - 1)) * grads[0]
            of_alpha = sums.sum_to_size(alpha.shape).to(alpha.dtype)
        return of_weight.view_as(weight), of_alpha, None, None


def _distances(weight: Tensor, alpha: Tensor, mask: Tensor | None, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of a few rows of [F, D] at a time: alpha - abs(W), 0 outside the mask; W; and the others."""
    rows = filters(weight)
    alphas = alpha.expand(len(rows), *[1] * (weight.dim() - 1)).reshape(-1, 1)
    kept = () if mask is None else (filters(mask),)
    for w, a, *rest in few_filters(rows, alphas, *kept, *others) if rows.numel() else ():
        d = w.abs().neg_().add_(a)
        yield (d.mul_(rest.pop(0)) if kept else d), w, *rest


PENALTIES: dict[str, Penalty] = {"r1": r1, "r2": r2}
# The scale that each is least at, for a learned scale to begin at.
STARTS: dict[str, str] = {"r1": "learned-median", "r2": "learned-l1-filter"}

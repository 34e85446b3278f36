"""How far latent weights are from the two values that they stand for: what a method adds to the loss.

A penalty maps (weight, alpha, mask) to a sum over the kept weights, a 0-dim tensor by which W and a learned alpha get
their gradients. weight: W [F, ...]; alpha: positive, broadcasts over it; mask: bool in W's shape, None where nothing is
pruned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Penalty: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def r1(weight: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
    """sum M abs(alpha - abs(W)) (Darabi et al. 2018): for fixed W least where alpha is the median of abs(W)."""
    return _kept(alpha - weight.abs(), mask).abs().sum()


def r2(weight: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
    """sum M (alpha - abs(W))^2 (Darabi et al. 2018): for fixed W least where alpha is the mean of abs(W)."""
    return _kept(alpha - weight.abs(), mask).square().sum()


def _kept(distance: Tensor, mask: Tensor | None) -> Tensor:
    return distance if mask is None else torch.where(mask, distance, 0)


PENALTIES: dict[str, Penalty] = {"r1": r1, "r2": r2}
# The scale that each is least at, for a learned scale to begin at.
STARTS: dict[str, str] = {"r1": "learned-median", "r2": "learned-l1-filter"}

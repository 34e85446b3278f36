"""How large a binary weight is: a scale maps (weight, mask) to a positive alpha that broadcasts over W.

`mask` is bool, or None where nothing is pruned. A layer that keeps no weight has alpha = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Scale: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


def kaiming(weight: Tensor, mask: Tensor | None) -> Tensor:
    """sqrt(2 / (k D)): keeps the variance of the activations over a ReLU layer. k = kept fraction, D = connections.

    (Li et al. 2022, section 3.3; He et al. 2015.) Returns a 0-dim tensor of W's dtype.
    """
    rows, size = weight.shape[0], weight[0].numel()
    kept = weight.new_full((), rows * size, dtype=_wide(weight)) if mask is None else mask.sum().to(_wide(weight))
    # k D = (K / (rows * size)) * size = K / rows
    return torch.where(kept > 0, (2 * rows / kept).sqrt(), 0).to(weight.dtype)


def l1(weight: Tensor, mask: Tensor | None) -> Tensor:
    """The mean magnitude of the kept weights, the MPT code's gain: sum(M abs(W)) / K. A 0-dim tensor of W's dtype."""
    magnitude = weight.abs().to(_wide(weight))
    if mask is None:
        return magnitude.mean().to(weight.dtype)
    total, kept = (magnitude * mask).sum(), mask.sum()
    return torch.where(kept > 0, total / kept, 0).to(weight.dtype)


def _wide(weight: Tensor) -> torch.dtype:
    """Counts and sums overflow or lose digits in half precision."""
    return torch.promote_types(weight.dtype, torch.float32)


SCALES: dict[str, Scale] = {"kaiming": kaiming, "l1": l1}

"""How large a binary weight is: a scale maps (weight, mask) to a positive alpha that broadcasts over W.

`mask` is bool, or None where nothing is pruned. A layer that keeps no weight has alpha = 0. A scale that can use what
is known of the layer already has `of_layer(latent, mask)` too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from . import kernels
from .devices import HOST
from .latent import Latent
from .selection import count_kept
from .standardise import Standard

Scale: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)  # equal after a copy too
class Kaiming:
    """sqrt(2 / (k D)): under random signs keeps the mean square of the activations over a ReLU layer (He et al. 2015).

    k = kept fraction, D = connections; for k = 1 in Li et al. 2022, section 3.3. Returns a 0-dim tensor of W's dtype.
    """

    def __call__(self, weight: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or kernels.suit(mask):
            kept = weight.numel() if mask is None else int(kernels.count(mask.reshape(1, -1)))
            return weight.new_full((), self._known(kept, weight.shape[0], _wide(weight)) if kept else 0.0)
        count = _kept(weight, mask)
        return torch.where(count > 0, self._of(count, weight.shape[0]), 0).to(weight.dtype)

    @staticmethod
    def _of(kept: Tensor, filters: int) -> Tensor:
        return (2 * filters / kept).sqrt()  # k D = (K / (F D)) D = K / F with F filters

    @staticmethod
    @lru_cache(maxsize=1000)
    def _known(kept: int, filters: int, dtype: torch.dtype) -> float:
        return float(Kaiming._of(torch.tensor(kept, dtype=dtype, device=HOST), filters))


def l1(weight: Tensor, mask: Tensor | None) -> Tensor:
    """The mean magnitude of the kept weights, the MPT code's gain: sum(M abs(W)) / K. A 0-dim tensor of W's dtype."""
    kept = _kept(weight, mask)
    if mask is not None and weight.dtype == torch.float32 and kernels.suit(weight, mask):
        # In whole units of 2^-30 of the largest magnitude: such a sum is the same in whatever order it is taken.
        low, high = weight.aminmax()
        exponent = torch.frexp(torch.maximum(-low, high)).exponent
        units = 2.0 ** min(30 - int(exponent), 126)
        total = weight.new_full((), kernels.masked_magnitude(weight, mask, units) / units)
    else:
        total = (weight if mask is None else torch.where(mask, weight, 0)).abs().sum(dtype=_wide(weight))
    return torch.where(kept > 0, total / kept, 0).to(weight.dtype)


@dataclass(frozen=True)  # equal after a copy too
class PowerOfTwo:
    """2^round(log2 m) per filter, m = mean abs of the kept weights standardised, so a shift (Qin et al. 2020, Eq. 8).

    Returns [F, 1, ...] in W's dtype; 1 for a filter whose weights are all equal, 0 for one that keeps none.
    """

    def __call__(self, weight: Tensor, mask: Tensor | None) -> Tensor:
        return self._of(Standard.of(weight, mask), weight)

    def of_layer(self, latent: Latent, mask: Tensor | None) -> Tensor:
        return self._of(latent.standard, latent.weight) if mask is None else self(latent.weight, mask)

    def _of(self, standard: Standard, weight: Tensor) -> Tensor:
        mean = standard.magnitude  # NaN for a filter that keeps none
        power = torch.where(mean > 0, mean, 1).log2().round()
        alpha = torch.where(mean >= 0, torch.ldexp(torch.ones_like(mean), power), 0)
        return alpha.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))


def scale_of(scale: Scale, latent: Latent, mask: Tensor | None) -> Tensor:
    """The scale of a layer, by `of_layer` where it has that."""
    of_layer = getattr(scale, "of_layer", None)
    alpha: Tensor = scale(latent.weight, mask) if of_layer is None else of_layer(latent, mask)
    return alpha


def _kept(weight: Tensor, mask: Tensor | None) -> Tensor:
    """How many weights are kept, in a float dtype that can say."""
    if mask is None:
        return weight.new_full((), weight.numel(), dtype=_wide(weight))
    return count_kept(mask.reshape(1, -1))[0].to(_wide(weight))


def _wide(weight: Tensor) -> torch.dtype:
    """Counts and sums overflow or lose digits in half precision."""
    return torch.promote_types(weight.dtype, torch.float32)


SCALES: dict[str, Scale] = {"kaiming": Kaiming(), "l1": l1, "power-of-two": PowerOfTwo()}

"""How large a binary weight is: a scale maps (layer, mask) to a positive alpha that broadcasts over W.

`mask` is bool, or None where nothing is pruned. A layer that keeps no weight has alpha = 0. A scale that sees the signs
takes them as a third argument, `positive`, bool in the shape of W.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import TypeAlias, cast

import torch
from torch import Tensor

from . import kernels
from .devices import HOST
from .filters import filters
from .layer import Layer
from .selection import count_kept
from .standardise import Standard

Scale: TypeAlias = Callable[..., Tensor]


def kaiming(layer: Layer, mask: Tensor | None) -> Tensor:
    """sqrt(2 / (k D)): under random signs keeps the mean square of the activations over a ReLU layer (He et al. 2015).

    k = kept fraction, D = connections; for k = 1 in Li et al. 2022, section 3.3. Returns a 0-dim tensor of W's dtype.
    """
    weight = as_layer(layer).weight
    if mask is None or kernels.suit(mask):
        kept = weight.numel() if mask is None else int(kernels.count(mask.reshape(1, -1)))
        return weight.new_full((), _known_kaiming(kept, weight.shape[0], _wide(weight)) if kept else 0.0)
    count = _kept(weight, mask)
    return torch.where(count > 0, _kaiming(count, weight.shape[0]), 0).to(weight.dtype)


def _kaiming(kept: Tensor, filters: int) -> Tensor:
    return (2 * filters / kept).sqrt()  # k D = (K / (F D)) D = K / F with F filters


@lru_cache(maxsize=1000)
def _known_kaiming(kept: int, filters: int, dtype: torch.dtype) -> float:
    return float(_kaiming(torch.tensor(kept, dtype=dtype, device=HOST), filters))


def l1(layer: Layer, mask: Tensor | None) -> Tensor:
    """The mean magnitude of the kept weights, the MPT code's gain: sum(M abs(W)) / K. A 0-dim tensor of W's dtype."""
    layer = as_layer(layer)
    # In one layout, as it bears on the order of a sum.
    weight, mask = layer.weight.contiguous(), None if mask is None else mask.contiguous()
    if mask is not None and weight.dtype == torch.float32 and kernels.suit(weight, mask):
        # In whole units of 2^-30 of the largest magnitude: such a sum is the same in whatever order it is taken.
        kept, units = int(kernels.count(mask.reshape(1, -1))), 2.0 ** min(30 - layer.derived.exponent, 126)
        total = weight.new_full((), kernels.masked_magnitude(weight, mask, units) / units)
        return total.div_(kept) if kept else total.zero_()
    count = _kept(weight, mask)
    total = (weight if mask is None else torch.where(mask, weight, 0)).abs().sum(dtype=_wide(weight))
    return torch.where(count > 0, total / count, 0).to(weight.dtype)


def power_of_two(layer: Layer, mask: Tensor | None) -> Tensor:
    """2^round(log2 m) per filter, m = mean abs of the kept weights standardised, so a shift (Qin et al. 2020, Eq. 8).

    Returns [F, 1, ...] in W's dtype; 1 for a filter whose weights are all equal, 0 for one that keeps none.
    """
    layer = as_layer(layer)
    weight = layer.weight
    standard = layer.derived.standard if mask is None else Standard.of(weight, mask)
    mean = standard.magnitude  # NaN for a filter that keeps none
    power = torch.where(mean > 0, mean, 1).log2().round()
    alpha = torch.where(mean >= 0, torch.ldexp(torch.ones_like(mean), power), 0)
    return alpha.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))


def one(layer: Layer, mask: Tensor | None) -> Tensor:
    """1, and 0 for a layer that keeps nothing. A 0-dim tensor of W's dtype."""
    weight = as_layer(layer).weight
    return weight.new_ones(()) if mask is None else mask.any().to(weight.dtype)


def filter_l1(layer: Layer, mask: Tensor | None) -> Tensor:
    """The mean magnitude of each filter's kept weights, sum(M abs(W)) / n_f (XNOR-Net, Rastegari et al. 2016).

    Returns [F, 1, ...] in W's dtype; 0 for a filter that keeps none.
    """
    return _filter_mean(as_layer(layer).weight, None, mask)


def least_squares(layer: Layer, mask: Tensor | None, positive: Tensor | None = None) -> Tensor:
    """The alpha >= 0 of each filter with which alpha B is nearest to M W: sum(M W b) / n_f, or 0 where that is less.

    Under `sign`, which is taken where no signs are given, that of `filter_l1`. Returns [F, 1, ...] in W's dtype; 0 for
    a filter that keeps none.
    """
    layer = as_layer(layer)
    weight = layer.weight
    positive = layer.derived.nonnegative if positive is None else positive
    return _filter_mean(weight, positive, mask).clamp_(min=0)


def _filter_mean(weight: Tensor, positive: Tensor | None, mask: Tensor | None) -> Tensor:
    """The mean over each filter's kept weights of W b, or of abs(W) without signs, 0 where none is: [F, 1, ...]."""
    sums = kernels.signed_sums(weight, positive, mask)
    count = sums.new_full((), weight.numel() // max(1, len(weight))) if mask is None else count_kept(filters(mask))
    mean = sums / count.clamp(min=1)
    return mean.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))


def filter_median(layer: Layer, mask: Tensor | None) -> Tensor:
    """The median magnitude of each filter's kept weights; of an even number the mean of the two in the middle.

    Returns [F, 1, ...] in W's dtype; 0 for a filter that keeps none.
    """
    weight = as_layer(layer).weight
    rows = filters(weight.abs())
    if mask is None:
        count = torch.full((len(rows), 1), rows.shape[1], device=weight.device)
    else:
        rows, count = rows.masked_fill(~filters(mask), torch.inf), filters(mask).sum(1, keepdim=True)
    middle = torch.cat([(count - 1).clamp(min=0) // 2, count // 2], 1).clamp(max=rows.shape[1] - 1)
    found = rows.sort(1).values.gather(1, middle).mean(1)
    return torch.where(count[:, 0] > 0, found, 0).view(-1, *[1] * (weight.dim() - 1))


@dataclass(frozen=True)
class Learned:
    """An alpha for each filter that is trained as a parameter a: alpha = abs(a), dL/da = sign(a) sum_f(g B).

    By abs(a) a scale stays a scale, and the share of +1 what it is. start: the scale that it begins at; a filter that
    keeps nothing begins as one that keeps all. Of a layer without such a parameter it is that scale of each filter.
    """

    start: Scale = kaiming

    def __call__(self, layer: Layer, mask: Tensor | None, positive: Tensor | None = None) -> Tensor:
        return self.begin(layer, mask, positive) if layer.alpha is None else layer.alpha.abs()

    def begin(self, layer: Layer, mask: Tensor | None, positive: Tensor | None = None) -> Tensor:
        """Where a begins: [F, 1, ...] in W's dtype."""
        weight = layer.weight
        alpha = scale_of(self.start, layer, mask, positive)
        if mask is not None:
            alpha = torch.where(alpha > 0, alpha, scale_of(self.start, layer, None, positive))
        return alpha.expand(weight.shape[0], *[1] * (weight.dim() - 1)).clone()


def as_layer(layer: Layer | Tensor) -> Layer:
    """The layer; of a weight, which scales were given before, a layer of this weight, with a warning."""
    if isinstance(layer, Layer):
        return layer
    warnings.warn("a scale takes (layer, mask), not (weight, mask): give it Layer(weight)", FutureWarning, stacklevel=3)
    return Layer(layer)


def takes_weight(scale: Scale) -> bool:
    """Whether a scale has the form of before, (weight, mask): its first argument is not called `layer`."""
    code = getattr(scale, "__code__", None)
    if code is not None and code.co_argcount and code.co_varnames[0] == "layer":  # asked in each pass: the quick look
        return False
    return next(iter(signature(getattr(scale, "forward", scale)).parameters), "") != "layer"


@lru_cache(maxsize=1000)
def sees_signs(scale: Scale) -> bool:
    """Whether a scale takes the signs too, as its third argument, `positive`."""
    return [*signature(getattr(scale, "forward", scale)).parameters][2:3] == ["positive"]


def scale_of(scale: Scale, layer: Layer, mask: Tensor | None, positive: Tensor | None = None) -> Tensor:
    """alpha of the layer, be the scale of the form (layer, mask), with `positive` behind it, or of that of before."""
    if sees_signs(scale):
        return scale(layer, mask, positive)
    return scale(cast(Layer, layer.weight) if takes_weight(scale) else layer, mask)


def _kept(weight: Tensor, mask: Tensor | None) -> Tensor:
    """How many weights are kept, in a float dtype that can say."""
    if mask is None:
        return weight.new_full((), weight.numel(), dtype=_wide(weight))
    return count_kept(mask.reshape(1, -1))[0].to(_wide(weight))


def _wide(weight: Tensor) -> torch.dtype:
    """Counts and sums overflow or lose digits in half precision."""
    return torch.promote_types(weight.dtype, torch.float32)


SCALES: dict[str, Scale] = {
    "kaiming": kaiming,
    "l1": l1,
    "power-of-two": power_of_two,
    "l1-filter": filter_l1,
    "least-squares": least_squares,
    "one": one,
    "learned": Learned(),
    "learned-l1-filter": Learned(filter_l1),
    "learned-median": Learned(filter_median),
}

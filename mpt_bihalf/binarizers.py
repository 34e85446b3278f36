"""Which sign a weight gets. A binarizer maps (layer, mask) to bool in the shape of W: True = +1, False = -1.

It answers for pruned weights too: their would-be sign, which the gradient of their score needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .layer import Layer
from .transport import transported

Binarizer: TypeAlias = Callable[[Layer, Tensor | None], Tensor]


def sign(layer: Layer, mask: Tensor | None) -> Tensor:
    """sign(W), each weight by itself; sign(0) = +1 (Rastegari et al. 2016)."""
    return layer.derived.nonnegative


def standardised_sign(layer: Layer, mask: Tensor | None) -> Tensor:
    """sign of the filter's W less its mean, so of W standardised (Qin et al. 2020); sign(0) = +1."""
    return layer.derived.standard.positive.view(layer.weight.shape)


def centred_sign(layer: Layer, mask: Tensor | None) -> Tensor:
    """sign of W less the mean of the layer, the one base of ABC-Net (Lin et al. 2017); sign(0) = +1."""
    weight = layer.weight
    return weight >= weight.mean(dtype=torch.promote_types(weight.dtype, torch.float32))


def fixed(layer: Layer, mask: Tensor | None) -> Tensor:
    """Transport over the whole filter, whatever the mask (Eq. 4): with frozen W the signs never change."""
    return layer.derived.top_of_all


def extremes(layer: Layer, mask: Tensor | None) -> Tensor:
    """+1 for the round_half_up(p_pos * kept) highest W of a filter: the signs that the mask rule `extremes` leaves."""
    return layer.derived.top_of_kept


BINARIZERS: dict[str, Binarizer] = {
    "sign": sign,
    "standardised-sign": standardised_sign,
    "transport": transported,
    "centred-sign": centred_sign,
    "fixed": fixed,
    "extremes": extremes,
}

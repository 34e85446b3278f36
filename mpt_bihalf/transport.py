"""Binarization by optimal transport (Li et al., AAAI 2022, Eq. 2 to 5), over a whole filter or its kept weights."""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels
from .counts import Number, fraction_within, round_half_up_each
from .devices import host_reads_free
from .filters import filters
from .layer import Layer
from .selection import count_kept


def binarize(weight: Tensor, p_pos: Number = 0.5, mask: Tensor | None = None) -> Tensor:
    """Binary weights of exact bit ratio: per filter the highest kept weights become +1, the other kept ones -1.

    This is the minimiser of the 1-Wasserstein transport cost from the n kept weights of a filter to the values
    +1 and -1 with masses n_pos / n and 1 - n_pos / n, where n_pos = round_half_up(p_pos * n) (Eq. 3 and 4). With
    p_pos = 1/2 it is bi-half (Eq. 5); an odd n then has one +1 more than -1s. Of equal weights the lower flat index
    ranks lower, so the ratio is exact whatever the weights are.

    weight: [F, ...], any float dtype, any device; the leading dimension counts the filters.
    p_pos: prior of +1 in [0, 1], read as the decimal that was written.
    mask: {0, 1} or bool, shape of `weight`; 1 = kept. None keeps all. A filter with nothing kept is all 0.

    Returns -1, 0 (pruned) and +1 in the shape and dtype of `weight`, without gradient.
    Raises ValueError for a NaN, a mask of another shape or with other values, or p_pos outside [0, 1].

    >>> binarize(torch.tensor([[0.3, 0.1, 0.2, 0.9]]))
    tensor([[ 1., -1., -1.,  1.]])
    """
    fraction_within(p_pos, "p_pos")
    check_rankable(weight, "weight")
    with torch.no_grad():
        if mask is None:
            positive = Layer(weight, p_pos=p_pos).derived.top_of_all
            return torch.where(positive, 1, -1).to(weight.dtype)
        kept = _as_bool(mask, weight)
        positive = transported(Layer(weight, p_pos=p_pos), kept)
        return torch.where(kept, torch.where(positive, 1, -1), 0).to(weight.dtype)


def transported(layer: Layer, mask: Tensor | None) -> Tensor:
    """Where transport over the kept weights puts +1; a pruned weight gets its would-be sign.

    mask: bool, shape of W, or None. The cut-off of a filter lies just under its lowest kept +1: a pruned weight that
    ranks above it would be +1, one below it -1. Returns bool, shape of W. No host synchronisation.
    """
    if mask is None:
        return layer.derived.top_of_all
    rows, kept = filters(layer.weight), filters(mask)
    n = count_kept(kept)
    n_pos = round_half_up_each(layer.p_pos, n, rows.shape[1])
    if host_reads_free(rows) or kernels.on_accelerator(rows, kept):  # else by the order, which frozen weights keep
        return layer.selections["transported"].largest(rows, n_pos, among=kept).view(mask.shape)
    count = kept.gather(1, layer.derived.order).cumsum(1)  # kept weights up to each rank
    positive = torch.empty_like(kept).scatter_(1, layer.derived.order, count > (n - n_pos).unsqueeze(1))
    return positive.view(mask.shape)


def check_rankable(values: Tensor, name: str) -> None:
    """Raise where `values` cannot be ranked: no floats, no filter dimension, or a NaN among them (not seen on meta)."""
    if not values.is_floating_point():
        raise ValueError(f"{name} must be of a float dtype, not {values.dtype}")
    if values.dim() == 0:
        raise ValueError(f"{name} needs a leading dimension that counts the filters; got a scalar")
    if not values.is_meta and values.isnan().any():
        raise ValueError(f"{name} has NaN in it: {int(values.isnan().sum())} of {values.numel()} values")


def _as_bool(mask: Tensor, weight: Tensor) -> Tensor:
    if mask.shape != weight.shape:
        raise ValueError(f"mask must have the shape of weight, {tuple(weight.shape)}, not {tuple(mask.shape)}")
    kept = mask != 0
    if mask.dtype != torch.bool and not mask.is_meta and (kept & (mask != 1)).any():
        raise ValueError("mask must hold only 0 (pruned) and 1 (kept)")
    return kept

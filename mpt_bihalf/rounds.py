"""Iterative pruning: the masks of its next round, by the weights that training has come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import binarizers, transport
from .binarizable import layers_of
from .binarizers import Binarizer
from .counts import Number, fraction_within, kept_count
from .filters import filters, wide_rows
from .given_masks import fixed_masks, stored_weight
from .initial import best_of
from .masks import SCOPES
from .measures import cut_off
from .parametrization import BinaryWeight, binary_layers
from .transport import check_rankable

CRITERIA = ("magnitude", "cutoff")
# Of a binarizer: (W, B) -> the cut-off of each filter, [F] or [1], in float32 or wider.
CUT_OFFS: dict[Binarizer, Callable[[Tensor, Tensor], Tensor]] = {
    binarizers.sign: lambda weight, binary: wide_rows(weight).new_zeros(1),
    binarizers.standardised_sign: lambda weight, binary: wide_rows(weight).mean(1),
    binarizers.centred_sign: lambda weight, binary: wide_rows(weight).mean().view(1),
    transport.transported: lambda weight, binary: cut_off(wide_rows(weight), binary),
}


@torch.no_grad()
def trained_masks(
    model: nn.Module,
    prune_rate: Number,
    criterion: str = "magnitude",
    scope: str = "global",
    layers: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """The masks of a network by the weights that it was trained to, within those that it has; for `fix_masks`.

    The step between two rounds of iterative magnitude pruning (Frankle & Carbin 2019), for weights that are real or
    binary.

    model: trained, under masks of `fix_masks` or none, and under a method that trains weights, or plain. It stays as it
    is.
    prune_rate: fraction of all weights pruned from now on, in [0, 1), read as written; at least what is pruned already.
    criterion: `magnitude`, abs(W) of the latent weights; or `cutoff`, the distance of W from where its sign would turn:
        under transport half-way between the lowest kept +1 and the highest kept -1 of its filter (of a filter of one
        sign, its last weight), under irnet the filter's mean, under abc the layer's, and under sign 0, so that there
        both are the same.
    scope: what is ranked together: `global` (all layers), `layer` or `filter`.
    layers: the names of those to mask. By default those that have masks, else the binarized ones, else all convolution
        and linear layers.

    Returns bool in the shape of the weight by the layer's name, True = kept. Of the N weights ranked together exactly
    N - round_half_up(prune_rate * N) are kept, all of them kept before; of equal ones those of the later layer or the
    higher index.

    Raises ValueError for an unknown criterion or scope, a rate outside [0, 1) or below what is pruned already, layers
    that are none of the model, NaN in weights, methods that train no weights or have a mask of their own, and `cutoff`
    where no cut-off is known: real weights, rotated ones, and binarizers of your own.

    >>> for prune_rate in (0.2, 0.36, 0.488):
    ...     train(model)
    ...     masks = trained_masks(model, prune_rate)
    ...     model = untrained_copy()
    ...     fix_masks(model, masks)
    """
    fraction_within(prune_rate, "prune_rate", below_one=True)
    for what, value, known in (("criterion", criterion, CRITERIA), ("scope", scope, SCOPES)):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")
    masks, known_layers = fixed_masks(model), layers_of(model)
    parts = {name: part for name, part, _ in binary_layers(model)}
    _check_methods(parts, masks)
    names = [*layers] if layers is not None else [*masks] or [*parts] or [*known_layers]
    scores: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in names:
        if name not in known_layers:
            raise ValueError(f"there is no layer {name!r} to mask in the model; it has: {', '.join(known_layers)}")
        weight = stored_weight(known_layers[name])
        if weight is None or id(weight) in seen:  # which layers may share
            continue
        seen.add(id(weight))
        check_rankable(weight, f"the weight of layer {name!r}")
        kept[name] = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        from_where = _cut_offs(name, parts.get(name), weight, kept[name]) if criterion == "cutoff" else 0
        scores[name] = (wide_rows(weight) - from_where).abs().view(weight.shape)
    _check_rate(prune_rate, kept, scope)
    return best_of(scores, kept, prune_rate, scope)


def _check_methods(parts: dict[str, BinaryWeight], masks: dict[str, Tensor]) -> None:
    for name, part in parts.items():
        method = part.method
        if method.trains != "weights":
            raise ValueError(f"{method.name} trains {method.trains}: there are no trained weights to prune by")
        if method.mask is not None and name not in masks:
            raise ValueError(f"{method.name} has a mask of its own, that follows its weights")


def _cut_offs(name: str, part: Any, weight: Tensor, kept: Tensor) -> Tensor:
    """Of each filter, [F, 1] or [1, 1]."""
    found = None if part is None or part.before is not None else CUT_OFFS.get(part.method.binarizer)
    if found is None:
        raise ValueError(f"no cut-off is known of layer {name!r}: take the criterion magnitude")
    binary = part.scaled_binary(weight, kept)[0]
    return found(weight, filters(binary)).nan_to_num(0.0)[:, None]  # NaN of a filter that keeps nothing


def _check_rate(prune_rate: Number, kept: dict[str, Tensor], scope: str) -> None:
    """Raise ValueError where fewer are kept than the rate keeps."""
    groups = [(name, mask.reshape(1, -1) if scope != "filter" else filters(mask)) for name, mask in kept.items()]
    if scope == "global":
        groups = [("", torch.cat([mask for _, mask in groups], dim=1))] if groups else []
    for name, rows in groups:
        wanted, there = kept_count(rows.shape[1], prune_rate), rows.shape[1] if rows.is_meta else int(rows.sum(1).min())
        if there < wanted:
            of = f" of a filter of layer {name!r}" if scope == "filter" else f" of layer {name!r}" if name else ""
            raise ValueError(f"prune_rate {prune_rate} keeps {wanted:,} weights{of}, and only {there:,} are left")

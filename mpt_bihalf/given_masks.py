"""Masks that come from elsewhere, from a ticket say: to start scores from, or to train under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .binarizable import BINARIZABLE
from .parametrization import BinaryWeight, binary_layers, parametrizations, refuse_sharded
from .transport import check_rankable

Masks = Mapping[str, Tensor]


class FixedMask(nn.Module):
    """The parametrization of a real-valued weight under a fixed mask: W where that is True, else 0."""

    fixed_mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed_mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.fixed_mask, weight, 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to `layer.weight` sets all of W, the pruned weights too."""
        return weight


@torch.no_grad()
def start_scores(model: nn.Module, masks: Masks) -> None:
    """Rearrange the scores of a model, in place, so that they keep what `masks` keeps, and go on learning from there.

    model: under a method that trains scores (mpt-sign, mpt-bihalf, mpt-balanced, or one of your own).
    masks: for each layer with scores, by its name, a tensor in the shape of its weight: bool, {0, 1}, or B with -1, 0
        and +1; other than 0 is kept. As `binary_weights(other)` and `ticket_weights(path)` give them.

    The scores of a layer, under the scope `global` those of all layers, stay the same values with their signs: the
    largest magnitudes go to the kept places, the others to the pruned ones, and within each of the two the places keep
    the order in which they were scored. Where a kept one would equal the largest pruned one, it becomes the next larger
    float.

    So the model's mask becomes this one exactly where its rule keeps as many of all that it ranks together: of a layer,
    a filter or the network, under mpt-balanced of each sign in a filter. At a lower rate it becomes a superset, at a
    higher one a subset. Else it takes of this mask as many as its rule keeps there. Under the scope `global` each layer
    keeps one weight, whatever its mask.

    Raises ValueError, and then changes nothing, for a model without scores, a sharded one, NaN in its scores, a name
    that is none of a layer with scores, a layer without a mask, and a mask of another shape, with other values, or that
    keeps nothing.
    """
    refuse_sharded(model)
    parts = {name: part for name, part, _ in binary_layers(model) if part.scores is not None}
    if not parts:
        raise ValueError("the model has no scores to start: put a method on it that trains them, as mpt-bihalf does")
    scores = {name: part.scores for name, part in parts.items() if part.scores is not None}
    kept = _checked(masks, scores, needed=scores)
    for name, of_layer in scores.items():
        check_rankable(of_layer, f"the scores of layer {name!r}")
    together: dict[Any, list[str]] = {}
    for name, part in parts.items():
        together.setdefault(id(part.ranking), []).append(name)
    for names in together.values():
        values = torch.cat([scores[name].flatten() for name in names])
        placed = _largest_to(torch.cat([kept[name].flatten() for name in names]), values)
        for name, new in zip(names, placed.split([scores[name].numel() for name in names]), strict=True):
            scores[name].copy_(new.view(scores[name].shape))


@torch.no_grad()
def fix_masks(model: nn.Module, masks: Masks, allow_empty: bool = False) -> None:
    """Use these weights of a model alone from now on, in place, whatever is trained.

    masks: by the layer's name, as `start_scores` takes them. Each binarized layer of the model needs one; any other
        convolution or linear layer may have one, and all else stays as it is.
    allow_empty: take masks that keep nothing of a layer too; by default an error.

    A real-valued weight is used as W where kept and 0 elsewhere, and what is pruned gets no gradient. On a binarized
    layer the mask stands in the place of the method's: the kept weights alone count for transport (so under bihalf
    each filter has its bit ratio over them exactly) and for the scale. Signs that the method decides over whole filters
    (irnet, mpt-balanced, magnitude-bihalf) stay those. Scores have no effect any more, nor has the pruning rate.

    The masks are part of the state (`fixed_mask`), so they go with it to the device, into copies and checkpoints; fix
    masks before loading such a state. Another call replaces them. `bake_weights` gives a plain network with zeros.

    Raises ValueError, and then changes nothing, for a sharded model, a name that is none of a convolution or linear
    layer, a binarized layer without a mask, a mask of another shape, with other values, or that keeps nothing, a weight
    that something else computes, and two masks for one weight. Layers that share a weight share its mask, whichever of
    them it is given for.
    """
    refuse_sharded(model)
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, BINARIZABLE)}
    weights = {name: layer.weight for name, layer in layers.items()}
    kept = _checked(masks, weights, [name for name, _, _ in binary_layers(model)], allow_empty)
    of_weight: dict[int, str] = {}  # which layer's mask it is
    for name, mask in kept.items():
        if _masked_by(layers[name]) is None and "weight" not in layers[name]._parameters:
            raise ValueError(f"layer {name!r}: its weight is computed (weight_norm?), not a parameter to put a mask on")
        first = of_weight.setdefault(id(stored_weight(layers[name])), name)
        if not mask.is_meta and not torch.equal(kept[first], mask):
            raise ValueError(f"layers {first!r} and {name!r} share one weight, and their masks differ")
    for layer in layers.values():
        given = of_weight.get(id(stored_weight(layer)))
        part = _masked_by(layer)
        if given is not None and part is None:
            parametrize.register_parametrization(layer, "weight", FixedMask(kept[given]))
        elif given is not None and part is not None:
            part.fixed_mask = kept[given]


def fixed_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks that `fix_masks` has put on a model, by the layer's name."""
    parts = {name: _masked_by(module) for name, module in model.named_modules()}
    return {name: part.fixed_mask for name, part in parts.items() if part is not None and part.fixed_mask is not None}


def has_fixed_mask(layer: nn.Module) -> bool:
    """Whether `fix_masks` has put a mask on this layer's real-valued weight."""
    return isinstance(_masked_by(layer), FixedMask)


def stored_weight(layer: Any) -> Tensor | None:
    """The stored weight behind the one in use; None where that is none."""
    if parametrize.is_parametrized(layer, "weight"):
        return getattr(layer.parametrizations.weight, "original", None)
    return cast(Tensor | None, layer._parameters.get("weight"))


def _masked_by(layer: Any) -> BinaryWeight | FixedMask | None:
    """What of the layer's parametrizations takes a fixed mask."""
    return next((part for part in parametrizations(layer) if isinstance(part, BinaryWeight | FixedMask)), None)


def _checked(
    masks: Masks, weights: Mapping[str, Tensor], needed: Iterable[str], allow_empty: bool = False
) -> dict[str, Tensor]:
    """The masks as bool in tensors of their own, on the weights' devices and in their layout."""
    if not isinstance(masks, Mapping):
        raise ValueError(
            f"masks must be a dictionary of tensors by the layer's name, not {type(masks).__name__}: "
            "ticket_weights(path) and binary_weights(model) give one"
        )
    for name in masks:
        if name not in weights:
            raise ValueError(f"there is no layer {name!r} to mask in the model; it has: {', '.join(weights)}")
    for name in needed:
        if name not in masks:
            raise ValueError(f"layer {name!r} has no mask: give one for each binarized layer")
    kept = {}
    for name, given in masks.items():
        if not isinstance(given, Tensor | np.ndarray):
            raise ValueError(f"the mask of layer {name!r} must be a tensor, not {type(given).__name__}")
        mask, weight = torch.as_tensor(given), weights[name]
        if mask.shape != weight.shape:
            raise ValueError(f"the mask of layer {name!r} must have shape {[*weight.shape]}, not {[*mask.shape]}")
        if mask.dtype != torch.bool and ((mask != 0) & (mask.abs() != 1)).any():
            raise ValueError(f"the mask of layer {name!r} must hold only 0 (pruned), 1 and -1 (kept)")
        if not allow_empty and not mask.is_meta and not mask.any():
            raise ValueError(f"the mask of layer {name!r} keeps nothing, and its output would be a constant")
        kept[name] = torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(mask != 0)
    return kept


def _largest_to(kept: Tensor, values: Tensor) -> Tensor:
    """The values [N] in other places: the largest magnitudes where `kept`, else in the order of before."""
    order = values.abs().argsort(stable=True)
    places = torch.cat([order[~kept[order]], order[kept[order]]])  # from the lowest pruned one to the highest kept one
    placed = torch.empty_like(values).index_copy_(0, places, values[order])
    largest_pruned = placed.abs().masked_fill(kept, -1).amax()
    larger = torch.nextafter(placed, torch.copysign(torch.full_like(placed, torch.inf), placed))
    # Of equal scores the one of higher index would be kept.
    return torch.where(kept & (placed.abs() == largest_pruned), larger, placed)

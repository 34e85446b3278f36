"""Which weights are kept. A mask rule maps a Layer to bool in the shape of W: True = kept.

`prune_rate` is the fraction *pruned*. (The reference MPT code uses a flag of that name for the fraction kept.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import sqrt
from typing import TypeAlias

import torch
from torch import Tensor

from .counts import Number, fraction_within, kept_count, round_half_up
from .filters import filters
from .initial_scores import ScoreRule, grasp, random, snip, synflow
from .initial_scores import magnitude as drawn_magnitude
from .layer import Layer
from .ranking import masks_together
from .transport import check_rankable

MaskRule: TypeAlias = Callable[[Layer], Tensor]


@dataclass(frozen=True, eq=False)
class InitialMask:
    """A mask that is fixed before training (`initial_masks`): the best-scored weights stay.

    scores: gives each layer's scores, float in the shape of W; the largest are kept, whatever their sign.
    rounds: how often they are taken, each time under the mask so far, of which the share
        (1 - prune_rate)^(round / rounds) of all weights stays.
    images: of each class, how many the scores look at; 0: none.
    """

    scores: ScoreRule
    rounds: int = 1
    images: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("images", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(
                    f"{name} of a mask at initialisation must be a whole number from {least} on, not {value}"
                )

    @property
    def name(self) -> str:
        """What its scores are called."""
        return getattr(self.scores, "__name__", repr(self.scores))

    def __call__(self, layer: Layer) -> Tensor:
        """Raises ValueError: of one layer nothing is known of the network."""
        raise ValueError(
            f"{self.name} is a mask at initialisation, of a whole network: fix_masks(model, initial_masks(...))"
        )


@dataclass(frozen=True)
class Threshold:
    """The weights of abs(W) above a threshold that stays the same (signed supermasks, Koster et al. 2022).

    tau: the threshold; None: 0.4 of Xavier's bound sqrt(6 / (fan-in + fan-out)), the largest abs(W) of a layer that is
        drawn uniformly within it. How much is kept comes out of the training: the pruning rate is not looked at.
    """

    tau: float | None = None

    def __post_init__(self) -> None:
        if self.tau is not None and not 0 <= self.tau < float("inf"):
            raise ValueError(f"tau must be a finite number of at least 0, not {self.tau}")

    def __call__(self, layer: Layer) -> Tensor:
        weight = layer.weight
        if self.tau is not None:
            return weight.abs() > self.tau
        fans = (weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()
        return weight.abs() > 0.4 * sqrt(6 / fans)


SCOPES = ("layer", "filter", "global")


def score_mask(scores: Tensor, prune_rate: Number, scope: str = "layer") -> Tensor:
    """Edge-popup's mask (Ramanujan et al. 2020): the weights of largest score magnitude stay, exactly as many as asked.

    Of the N scores in the scope, N - round_half_up(prune_rate * N) are kept; of equal magnitudes the higher flat index.

    scores: [F, ...], any float dtype, any device. prune_rate: fraction pruned, in [0, 1), read as written.
    scope: `layer` ranks all scores together, `filter` each filter (leading index) by itself. For all layers of a
    network together see `global_score_masks`.

    Returns 1 (kept) and 0 (pruned) in the shape and dtype of `scores`.
    Raises ValueError for a NaN, a rate outside [0, 1), or another scope.

    >>> score_mask(torch.tensor([[0.1, -0.4], [0.3, 0.2]]), prune_rate=0.5)
    tensor([[0., 1.],
            [1., 0.]])
    """
    fraction_within(prune_rate, "prune_rate", below_one=True)
    check_rankable(scores, "scores")
    if scope not in ("layer", "filter"):
        raise ValueError(f"scope of a single layer is 'layer' or 'filter', not {scope!r}")
    with torch.no_grad():
        return _ranked(Layer(scores, scores, prune_rate), scores, scope).to(scores.dtype)


def global_score_masks(scores: Sequence[Tensor], prune_rate: Number) -> list[Tensor]:
    """Masks of several layers ranked together, in the layers' order; no layer loses its last weight.

    Of all N scores, N - round_half_up(prune_rate * N) are kept, those of largest magnitude; of equal ones that of the
    later layer or the higher index. A layer that would lose all keeps its best-scored, at the cost of the lowest-scored
    kept weight of another layer, so the count holds (Diffenderfer & Kailkhura's later code, and ours, of one count).

    scores: float tensors on one device. Returns {0, 1} masks of their shapes and dtypes.
    Raises ValueError for a NaN, a rate outside [0, 1), or one that leaves fewer places than layers.
    """
    fraction_within(prune_rate, "prune_rate", below_one=True)
    for i, layer in enumerate(scores):
        check_rankable(layer, f"scores of layer {i}")
    check_places([layer.numel() for layer in scores], prune_rate)
    with torch.no_grad():
        return [mask.to(s.dtype) for mask, s in zip(masks_together(scores, prune_rate), scores, strict=True)]


def check_places(sizes: Sequence[int], prune_rate: Number) -> None:
    """Raise ValueError where a global mask at `prune_rate` has fewer places than there are layers of these sizes."""
    kept = kept_count(sum(sizes), prune_rate)
    if kept < len(sizes):
        raise ValueError(
            f"prune_rate {prune_rate} keeps {kept} of {sum(sizes)} weights, fewer than the {len(sizes)} masked layers; "
            f"each layer needs one: take at most {_highest_rate(sum(sizes), len(sizes))}"
        )


def refuse_empty(layers: Mapping[str, tuple[MaskRule, Tensor, str]], prune_rate: Number) -> None:
    """Raise ValueError where a mask rule keeps no weight of a layer at `prune_rate`, with the highest rate that does.

    layers: by name the rule, the weight and the scope. Of a rule that is none of `MASKS` nothing is known.
    """
    ranked = {name: size for name, of in layers.items() if (size := _ranked_size(*of))}
    empty = [name for name, size in ranked.items() if not kept_count(size, prune_rate)]
    if empty:
        first, smallest = ranked[empty[0]], min(ranked[name] for name in empty)
        of_each = " of each filter" if first < layers[empty[0]][1].numel() else ""
        others = f" (and of {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise ValueError(
            f"prune_rate {prune_rate} keeps none of the {first} weights{of_each} of layer {empty[0]!r}{others}: "
            f"take at most {_highest_rate(smallest)}, or name such layers in skip"
        )


def _ranked_size(rule: MaskRule, weight: Tensor, scope: str) -> int:
    """How many weights of a layer the rule ranks together; 0 where it spares one of each layer, or is not known."""
    within = RANKED_WITHIN.get(rule) or scope if rule in RANKED_WITHIN else ""
    return {"layer": weight.numel(), "filter": weight.shape[1:].numel()}.get(within, 0)


def _highest_rate(size: int, places: int = 1) -> Decimal:
    """The highest rate, in four digits or as many as it takes, at which `places` of so many weights are kept."""
    digits = max(4, len(str(2 * size)))
    # They are below 1 - (2 places - 1) / (2 size), where round_half_up would still round down.
    return Decimal(((2 * (size - places) + 1) * 10**digits - 1) // (2 * size)).scaleb(-digits)


def edge_popup(layer: Layer) -> Tensor:
    """The weights of largest abs(S), within the layer, the filter, or all layers (Ramanujan et al. 2020)."""
    scores = _scores_of(layer)
    if layer.scope == "global":
        return layer.ranking.masks(layer.all_scores, layer.prune_rate)[layer.index]
    return _ranked(layer, scores, layer.scope)


def magnitude(layer: Layer) -> Tensor:
    """The weights of largest abs(W) of the layer."""
    return _ranked(layer, layer.weight, "layer")


def extremes(layer: Layer) -> Tensor:
    """Per filter the highest and the lowest W, the middle ranks pruned (the pruned mode of the bi-half authors' code).

    Of `kept` the round_half_up(p_pos * kept) highest stay, and the rest from the lowest.
    """
    rows = filters(layer.weight)
    kept = kept_count(rows.shape[1], layer.prune_rate)
    negative = kept - round_half_up(layer.p_pos, kept)
    lowest = ~layer.selections["above_lowest"].largest(rows, rows.shape[1] - negative)
    return layer.derived.top_of_kept | lowest.view(layer.weight.shape)


def balanced(layer: Layer) -> Tensor:
    """Per filter the best-scored of its +1s and of its -1s, so that what is kept has the asked bit ratio exactly.

    The signs are those of transport over the whole filter; of `kept`, round_half_up(p_pos * kept) come from the +1s
    and the rest from the -1s. As the signs have the same prior there are always enough of each.
    """
    scores = filters(_scores_of(layer))
    positive = filters(layer.derived.top_of_all)
    kept = kept_count(scores.shape[1], layer.prune_rate)
    quota = round_half_up(layer.p_pos, kept)
    mask = layer.selections["balanced"].largest_of_both(scores, (quota, kept - quota), positive, absolute=True)
    return mask.view(layer.weight.shape)


def _scores_of(layer: Layer) -> Tensor:
    assert layer.scores is not None, "this mask rule needs scores"
    return layer.scores


def _ranked(layer: Layer, values: Tensor, scope: str) -> Tensor:
    rows = filters(values) if scope == "filter" else values.reshape(1, -1)
    kept = kept_count(rows.shape[1], layer.prune_rate)
    return layer.selections["ranked"].largest(rows, kept, absolute=True).view(values.shape)


MASKS: dict[str, MaskRule] = {
    "edge-popup": edge_popup,
    "magnitude": magnitude,
    "extremes": extremes,
    "balanced": balanced,
    "threshold": Threshold(),
    "random": InitialMask(random),
    "snip": InitialMask(snip, images=10),
    "grasp": InitialMask(grasp, images=25),
    "synflow": InitialMask(synflow, rounds=100),
}
# What each that ranks weights does so within, for `refuse_empty`: the layer, the filter, or (None) what the scope says.
RANKED_WITHIN: dict[MaskRule, str | None] = {
    edge_popup: None,
    magnitude: "layer",
    extremes: "filter",
    balanced: "filter",
}


def find_initial_mask(rule: str | InitialMask) -> InitialMask:
    """The mask at initialisation of this name in `MASKS`, or the given one itself; ValueError with those known."""
    found = MASKS.get(rule) if isinstance(rule, str) else rule
    if found is magnitude:
        return InitialMask(drawn_magnitude)
    if not isinstance(found, InitialMask):
        raise ValueError(f"unknown mask {rule!r}; known: {', '.join(initial_mask_names())}")
    return found


def initial_mask_names() -> list[str]:
    """The entries of `MASKS` that can be fixed before training."""
    return [name for name, rule in MASKS.items() if rule is magnitude or isinstance(rule, InitialMask)]

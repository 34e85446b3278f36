"""Which weights are kept. A mask rule maps a Latent to bool in the shape of W: True = kept.

`prune_rate` is the fraction *pruned*. (The reference MPT code uses a flag of that name for the fraction kept.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from decimal import Decimal
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .contents import contents
from .counts import Number, fraction_within, kept_count, round_half_up
from .filters import filters
from .latent import Latent
from .selection import largest
from .sharded import is_whole
from .transport import check_rankable

MaskRule: TypeAlias = Callable[[Latent], Tensor]

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
        return _ranked(Latent(scores, scores, prune_rate), scores, scope).to(scores.dtype)


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
        return [mask.to(s.dtype) for mask, s in zip(_ranked_together(scores, prune_rate), scores, strict=True)]


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
    if rule in (extremes, balanced) or (rule is edge_popup and scope == "filter"):
        return weight.shape[1:].numel()
    return weight.numel() if rule is magnitude or (rule is edge_popup and scope == "layer") else 0


def _highest_rate(size: int, places: int = 1) -> Decimal:
    """The highest rate, in four digits or as many as it takes, at which `places` of so many weights are kept."""
    digits = max(4, len(str(2 * size)))
    # They are below 1 - (2 places - 1) / (2 size), where round_half_up would still round down.
    return Decimal(((2 * (size - places) + 1) * 10**digits - 1) // (2 * size)).scaleb(-digits)


def edge_popup(latent: Latent) -> Tensor:
    """The weights of largest abs(S), within the layer, the filter, or all layers (Ramanujan et al. 2020)."""
    scores = _scores_of(latent)
    if latent.scope == "global":
        assert latent.ranking is not None, "scope 'global' needs the ranking that all layers share"
        return latent.ranking.mask_of(latent.index, latent.all_scores)
    return _ranked(latent, scores, latent.scope)


def magnitude(latent: Latent) -> Tensor:
    """The weights of largest abs(W) of the layer."""
    return _ranked(latent, latent.weight, "layer")


def extremes(latent: Latent) -> Tensor:
    """Per filter the highest and the lowest W, the middle ranks pruned (the pruned mode of the bi-half authors' code).

    Of `kept` the round_half_up(p_pos * kept) highest stay, and the rest from the lowest.
    """
    rows = filters(latent.weight)
    kept = kept_count(rows.shape[1], latent.prune_rate)
    negative = kept - round_half_up(latent.p_pos, kept)
    lowest = ~latent.largest(rows, rows.shape[1] - negative, "above_lowest")
    return latent.top_of_kept | lowest.view(latent.weight.shape)


def balanced(latent: Latent) -> Tensor:
    """Per filter the best-scored of its +1s and of its -1s, so that what is kept has the asked bit ratio exactly.

    The signs are those of transport over the whole filter; of `kept`, round_half_up(p_pos * kept) come from the +1s
    and the rest from the -1s. As the signs have the same prior there are always enough of each.
    """
    scores = filters(_scores_of(latent))
    positive = filters(latent.top_of_all)
    kept = kept_count(scores.shape[1], latent.prune_rate)
    quota = round_half_up(latent.p_pos, kept)
    mask = latent.largest_of_both(scores, (quota, kept - quota), "balanced", positive, absolute=True)
    return mask.view(latent.weight.shape)


class GlobalRanking:
    """All masked layers of a network, ranked together once for each pass through them."""

    def __init__(self, prune_rate: Number, layers: Sequence[torch.nn.Module] = ()) -> None:
        self.prune_rate = prune_rate
        self.layers = list(layers)  # each with `scores`, in the model's order
        self._masks: dict[int, Tensor] = {}  # of the layers that have not asked yet in this pass
        self._ranked: list[Any] | None = None  # the scores that these masks are of, and what they held
        # Off the host torch's fused optimizers write without a note of it, so their steps have to be heard of.
        forget = weakref.WeakMethod(self.forget)
        hook = register_optimizer_step_post_hook(lambda *_: (call := forget()) and call())
        weakref.finalize(self, hook.remove)

    def scores(self) -> list[Tensor]:
        """Those of all layers, in the model's order."""
        return [cast(Tensor, layer.scores) for layer in self.layers]

    def mask_of(self, index: int, scores: Sequence[Tensor] = ()) -> Tensor:
        """The mask of the layer at this place: bool, shape of its scores.

        scores: of all layers, in the place of those that they have. Raises ValueError where some lie in parts on
        several processes.
        """
        if scores:
            return _ranked_together(scores, self.prune_rate)[index]
        scores = self.scores()
        for of_layer in scores:
            if not is_whole(of_layer):
                raise ValueError(
                    "scope 'global' ranks the scores of all layers together, and some lie in parts on several "
                    "processes: shard the model as one (fully_shard(model)), not its layers one by one"
                )
        # A layer that asks again starts a new pass: off the host not all writes are seen.
        mask = self._masks.pop(index, None) if self._masks and _held(scores) == self._ranked else None
        if mask is None:
            masks = dict(enumerate(_ranked_together(scores, self.prune_rate)))
            mask = masks.pop(index)
            self._ranked = held = _held(scores)
            self._masks = masks if held is not None else {}
        return mask

    def forget(self) -> None:
        """Rank anew when next asked."""
        self._masks = {}

    def set_prune_rate(self, prune_rate: Number) -> None:
        """Prune this fraction of all layers from now on."""
        self.prune_rate = prune_rate
        for layer in self.layers:
            cast(Any, layer).prune_rate = prune_rate
        self.forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> GlobalRanking:
        copy = memo[id(self)] = GlobalRanking(self.prune_rate)
        copy.layers = deepcopy(self.layers, memo)
        return copy


def _held(scores: Sequence[Tensor]) -> list[Any] | None:
    """Which tensors these are and what they hold; None where that cannot be told."""
    held = [contents(s) for s in scores]
    return None if None in held else [*map(id, scores), *held]


def _scores_of(latent: Latent) -> Tensor:
    assert latent.scores is not None, "this mask rule needs scores"
    return latent.scores


def _ranked(latent: Latent, values: Tensor, scope: str) -> Tensor:
    rows = filters(values) if scope == "filter" else values.reshape(1, -1)
    kept = kept_count(rows.shape[1], latent.prune_rate)
    return latent.largest(rows, kept, "ranked", absolute=True).view(values.shape)


def _ranked_together(scores: Sequence[Tensor], prune_rate: Number) -> list[Tensor]:
    sizes = [s.numel() for s in scores]
    magnitudes = [s.reshape(1, -1).abs() for s in scores]
    spared = torch.cat([largest(m, 1) for m in magnitudes], dim=1)
    others = torch.cat(magnitudes, dim=1).masked_fill(spared, -1)  # below every magnitude
    kept = spared | largest(others, kept_count(sum(sizes), prune_rate) - len(sizes))
    return [part.view(s.shape) for part, s in zip(kept.split(sizes, dim=1), scores, strict=True)]


MASKS: dict[str, MaskRule] = {
    "edge-popup": edge_popup,
    "magnitude": magnitude,
    "extremes": extremes,
    "balanced": balanced,
}

"""Layers that are ranked together, as edge-popup does under the scope `global`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .counts import Number, kept_count
from .selection import largest
from .sharded import is_whole


class GlobalRanking:
    """The masks of layers that are ranked together, worked out once in each pass through them.

    It is told when a pass begins and when it ends: in between the scores are taken to stay as they are. Outside of a
    pass each question is answered from the scores as they are then.
    """

    def __init__(self) -> None:
        self._in_pass = False
        self._known: tuple[Sequence[Tensor], Number, list[Tensor]] | None = None  # the masks of these at this rate

    def begin(self, *_: object) -> None:
        """A pass begins. Takes the arguments of a forward pre-hook, and makes no use of them."""
        if not torch.compiler.is_compiling():  # a graph ranks by an operator
            self._in_pass, self._known = True, None

    def end(self, *_: object) -> None:
        """A pass has ended, by an error too. Takes the arguments of a forward hook."""
        if not torch.compiler.is_compiling():
            self._in_pass, self._known = False, None

    def masks(self, scores: Sequence[Tensor], prune_rate: Number) -> list[Tensor]:
        """The masks of all layers: bool, in the shapes of their scores, which are given in the model's order.

        Raises ValueError where some lie in parts on several processes.
        """
        known = self._known  # taken once: another thread may be at it
        if known and known[1] is prune_rate and all(a is b for a, b in zip(known[0], scores, strict=True)):
            return known[2]
        if not all(map(is_whole, scores)):
            raise ValueError(
                "scope 'global' ranks the scores of all layers together, and some lie in parts on several processes: "
                "shard the model as one (fully_shard(model)), not its layers one by one"
            )
        masks = masks_together(scores, prune_rate)
        if self._in_pass:
            self._known = scores, prune_rate, masks
        return masks

    def __reduce__(self) -> tuple[type[GlobalRanking], tuple[()]]:
        return GlobalRanking, ()  # a copy is in no pass


def masks_together(scores: Sequence[Tensor], prune_rate: Number) -> list[Tensor]:
    """See `masks.global_score_masks`; bool, nothing is checked."""
    sizes = [s.numel() for s in scores]
    magnitudes = [s.reshape(1, -1).abs() for s in scores]
    best = torch.cat([largest(m, 1) for m in magnitudes], dim=1)
    others = torch.cat(magnitudes, dim=1).masked_fill(best, -1)  # below every magnitude
    kept = best | largest(others, kept_count(sum(sizes), prune_rate) - len(sizes))
    return [part.view(s.shape) for part, s in zip(kept.split(sizes, dim=1), scores, strict=True)]

"""One layer as the rules of a method see it: latent weights, scores, and what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from .counts import Number, kept_count, round_half_up
from .filters import filters
from .ranks import Ranks
from .selection import fitting, largest, largest_of_both
from .spare import Spare
from .standardise import Standard

if TYPE_CHECKING:
    from .masks import GlobalRanking


@dataclass(eq=False)
class Latent:
    """What mask rules, binarizers and gradients may look at in one layer.

    weight: latent weights W, any float dtype, leading dimension = filter.
    scores: S, of the same shape, or None where a method has none.
    prune_rate: fraction pruned, in [0, 1). p_pos: prior of +1, in [0, 1].
    scope: what scores are ranked within: `layer`, `filter` or `global`; for the last, `ranking` ranks all layers and
    `index` is the place of this one among them; `all_scores` stand in the place of those that they have, if given.
    progress: how far the training is, epoch / epochs in [0, 1), for gradients with a schedule.
    hints: where selections ended a step ago; they save time and change nothing.
    spare: memory for a gradient.

    The properties follow from W alone. Where W is frozen each is worked out once and handed on (`take_over`); `seen`
    says how many times in a row W has been the same.
    """

    weight: Tensor
    scores: Tensor | None = None
    prune_rate: Number = 0.0
    p_pos: Number = 0.5
    scope: str = "layer"
    ranking: GlobalRanking | None = None
    index: int = 0
    progress: float = 0.0
    hints: dict[str, Tensor] = field(default_factory=dict)
    spare: Spare = field(default_factory=Spare)
    all_scores: Sequence[Tensor] = ()
    seen: int = field(default=1, init=False)

    def largest(
        self,
        values: Tensor,
        count: int | Tensor,
        name: str,
        absolute: bool = False,
        among: Tensor | None = None,
    ) -> Tensor:
        """`selection.largest` of rows [R, D], which looks first where the selection of this `name` was a step ago."""
        hints = self.hints[name] = fitting(self.hints.get(name), values)
        return largest(values, count, absolute, among, hints)

    def largest_of_both(
        self, values: Tensor, counts: tuple[int, int], name: str, among: Tensor, absolute: bool = False
    ) -> Tensor:
        """`selection.largest_of_both`, likewise."""
        hints = self.hints[name] = fitting(self.hints.get(name), values, 2)
        return largest_of_both(values, counts, among, absolute, hints)

    def take_over(self, other: Latent) -> None:
        """Take what was worked out of the same W from `other`."""
        self.seen = other.seen + 1
        self.ranks = other.ranks
        names = ["order", "nonnegative", "standard"]
        if (self.prune_rate, self.p_pos) == (other.prune_rate, other.p_pos):
            names += ["top_of_all", "top_of_kept"]
        for name in names:
            if name in vars(other):
                vars(self)[name] = vars(other)[name]

    @cached_property
    def order(self) -> Tensor:
        """Per filter the flat indices of W from the lowest weight to the highest: int64 [F, D], ties by index."""
        return filters(self.weight).argsort(dim=1, stable=True)

    @cached_property
    def ranks(self) -> Ranks:
        """What finds cuts by counting along such an order, from the highest down, in the host's memory."""
        return Ranks(self.weight)

    @cached_property
    def nonnegative(self) -> Tensor:
        """Where W >= 0: bool, shape of W."""
        return self.weight >= 0

    @cached_property
    def standard(self) -> Standard:
        """Mean and deviation of each filter of W, and where W is at least the mean."""
        return Standard.of(self.weight)

    @cached_property
    def top_of_all(self) -> Tensor:
        """Where transport over the whole filter, nothing pruned, puts +1: bool, shape of W (Eq. 4)."""
        rows = filters(self.weight)
        count = round_half_up(self.p_pos, rows.shape[1])
        return self.largest(rows, count, "top_of_all").view(self.weight.shape)

    @cached_property
    def top_of_kept(self) -> Tensor:
        """The round_half_up(p_pos * kept) highest W of each filter, `kept` counted per filter: bool, shape of W."""
        rows = filters(self.weight)
        kept = kept_count(rows.shape[1], self.prune_rate)
        return self.largest(rows, round_half_up(self.p_pos, kept), "top_of_kept").view(self.weight.shape)

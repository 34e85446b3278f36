"""One layer as the rules of a method see it: latent weights, scores, and what is asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from .counts import Number
from .derived import Derived, Selections
from .ranking import GlobalRanking
from .selection import Selection


@dataclass(eq=False)
class Layer:
    """What mask rules, binarizers, scales and gradients may look at in one layer. Nobody writes to it.

    weight: latent weights W, any float dtype, leading dimension = filter.
    scores: S, of the same shape, or None where a method has none.
    prune_rate: fraction pruned, in [0, 1). p_pos: prior of +1, in [0, 1].
    scope: what scores are ranked within: `layer`, `filter` or `global`; for the last, `all_scores` are those of the
    layers that are ranked together, `index` is the place of this one among them, and `ranking` knows of their pass.
    progress: how far the training is, epoch / epochs in [0, 1), for gradients with a schedule.
    kept: what the mask keeps, bool in the shape of W, once that is decided; None where nothing is pruned.
    alpha: the trained scale of each filter, [F, 1, ...], or None where the scale is not trained.

    What only saves time, and changes nothing:
    selections: by a name that a rule chooses, those that look first where they ended a step ago.
    known: gives what follows from W, where that is kept (`FrozenWeight`).
    """

    weight: Tensor
    scores: Tensor | None = None
    prune_rate: Number = 0.0
    p_pos: Number = 0.5
    scope: str = "layer"
    progress: float = 0.0
    all_scores: Sequence[Tensor] = ()
    index: int = 0
    ranking: GlobalRanking = field(default_factory=GlobalRanking)
    selections: Selections = field(default_factory=lambda: defaultdict(Selection))
    known: Callable[[], Derived] | None = None
    kept: Tensor | None = None
    alpha: Tensor | None = None

    @cached_property
    def derived(self) -> Derived:
        """What follows from W alone."""
        return self.known() if self.known else Derived(self.weight, self.prune_rate, self.p_pos, self.selections)

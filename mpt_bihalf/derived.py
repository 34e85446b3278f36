"""What follows from a layer's latent weights alone."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

import torch
from torch import Tensor

from .contents import contents
from .counts import Number, kept_count, round_half_up
from .filters import filters
from .selection import Selection
from .standardise import Standard

Selections = defaultdict[str, Selection]


class Derived:
    """What follows from W [F, ...], each worked out when first asked for.

    prune_rate, p_pos: as in `Layer`. selections: those that `top_of_all` and `top_of_kept` are found by.
    """

    def __init__(self, weight: Tensor, prune_rate: Number, p_pos: Number, selections: Selections) -> None:
        self._weight, self._prune_rate, self._p_pos, self._selections = weight, prune_rate, p_pos, selections

    @cached_property
    def order(self) -> Tensor:
        """Per filter the flat indices of W from the lowest weight to the highest: int64 [F, D], ties by index."""
        return filters(self._weight).argsort(dim=1, stable=True)

    @cached_property
    def nonnegative(self) -> Tensor:
        """Where W >= 0: bool, shape of W."""
        return self._weight >= 0

    @cached_property
    def exponent(self) -> int:
        """Of the power of two above every abs(W); waits for the device."""
        low, high = self._weight.aminmax()
        return int(torch.frexp(torch.maximum(-low, high)).exponent)

    @cached_property
    def standard(self) -> Standard:
        """Mean and deviation of each filter of W, and where W is at least the mean."""
        return Standard.of(self._weight)

    @cached_property
    def top_of_all(self) -> Tensor:
        """Where transport over the whole filter, nothing pruned, puts +1: bool, shape of W (Eq. 4)."""
        return self._top(filters(self._weight).shape[1], "top_of_all")

    @cached_property
    def top_of_kept(self) -> Tensor:
        """The round_half_up(p_pos * kept) highest W of each filter, `kept` counted per filter: bool, shape of W."""
        return self._top(kept_count(filters(self._weight).shape[1], self._prune_rate), "top_of_kept")

    def _top(self, of: int, name: str) -> Tensor:
        rows, count = filters(self._weight), round_half_up(self._p_pos, of)
        return self._selections[name].largest(rows, count).view(self._weight.shape)


class FrozenWeight:
    """What follows from a weight that is not trained, kept from pass to pass.

    It is made anew when the weight is another tensor, holds other values (`contents`), or p_pos or prune_rate is
    another; after `forget`; and in inference mode, whose tensors could not be used in training.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, object, Derived] | None = None  # the weight, what else it follows from, the rest

    def derived(self, weight: Tensor, prune_rate: Number, p_pos: Number, selections: Selections) -> Derived:
        """What follows from this weight, the parameter itself."""
        if weight.is_inference() or torch.is_inference_mode_enabled():
            return Derived(weight.detach(), prune_rate, p_pos, selections)
        held, last = contents(weight), self._last  # taken once: another thread may be at it
        now = held, prune_rate, p_pos
        if last is None or held is None or last[0] is not weight or last[1] != now:
            last = weight, now, Derived(weight.detach(), prune_rate, p_pos, selections)
            self._last = last if held is not None else None
        return last[2]

    def forget(self) -> None:
        """Make it anew next time."""
        self._last = None

    def __reduce__(self) -> tuple[type[FrozenWeight], tuple[()]]:
        return FrozenWeight, ()  # a copy's weight is another

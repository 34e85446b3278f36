"""The values that a grid of runs goes through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from itertools import product
from math import prod
from typing import Any

Setting = dict[str, Any]  # as fields of a run


class Grid:
    """The combinations of a setting of each axis, the last varied fastest. None is made before it is asked for."""

    def __init__(self, *axes: Sequence[Setting]) -> None:
        self._axes = axes

    @property
    def count(self) -> int:
        """How many there are; `len` could not hold that of any grid."""
        return prod(map(len, self._axes))

    def __iter__(self) -> Iterator[Setting]:
        for point in product(*self._axes):
            yield {name: value for setting in point for name, value in setting.items()}


def parse_rates(text: str, name: str = "rates") -> list[float]:
    """Rates, ascending, each once: `0.1..0.9` (steps of 0.1), `0.1..0.9:0.2`, `0.5`, or several with commas.

    Raises ValueError, naming the part at fault, for anything else or a rate outside [0, 1).
    name: what the message calls them.
    """
    told = f"{name} {text!r}"
    rates: set[Decimal] = set()
    for part in text.split(","):
        if ".." in part:
            bounds, _, step_text = part.partition(":")
            first_text, _, last_text = bounds.partition("..")
            first, last = _rate(first_text, told), _rate(last_text, told)
            step = _decimal(step_text, told) if ":" in part else Decimal("0.1")
            if step <= 0:
                raise ValueError(f"{told}: the step {step_text} must be above 0")
            if first > last:
                raise ValueError(f"{told}: the range {bounds.strip()} runs backwards")
            if (last - first) / step > 10_000:
                raise ValueError(f"{told}: the step {step_text} gives more than 10,000 rates")
            rates.update(first + i * step for i in range(int((last - first) / step) + 1))
        else:
            rates.add(_rate(part, told))
    return sorted(float(rate) for rate in rates)


def _rate(part: str, told: str) -> Decimal:
    rate = _decimal(part, told)
    if not 0 <= rate < 1 or float(rate) == 1:
        raise ValueError(f"{told}: {part.strip()} is not in [0, 1)")
    return rate


def _decimal(part: str, told: str) -> Decimal:
    try:
        value = Decimal(part.strip())
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or (value and not -15 <= value.adjusted() <= 15):
        raise ValueError(f"{told}: {part.strip()!r} is not a number; write e.g. 0.5, 0.1..0.9 or 0.1..0.9:0.2")
    return value

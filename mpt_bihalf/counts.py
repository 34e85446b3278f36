"""Exact counts from decimal fractions: how many of `n` weights a rate or a prior asks for.

A user who writes 0.35 means 35/100, not the binary number next to it. All counts here are therefore worked out in
rational arithmetic from the shortest decimal that stands for the given number.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["kept_count", "round_half_up"]

Number: TypeAlias = float | int | str | Decimal | Fraction

# Those of `round_half_up_each`, by prior, size and device.
_TABLES: dict[tuple[Fraction, int, torch.device], Tensor] = {}
MOST_TABLES = 100

INT64_MAX = torch.iinfo(torch.int64).max


def as_fraction(x: Number, name: str = "value") -> Fraction:
    """`x` as the rational number its decimal notation stands for: 0.35 -> 7/20.

    Raises ValueError where `x` is no finite number; `name` stands in the message.
    """
    try:
        return _of_float(x) if type(x) is float else Fraction(str(x))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{name} must be a finite number, not {x!r}") from None


@lru_cache(maxsize=1000)
def _of_float(x: float) -> Fraction:
    """Looked up where many runs have the same rates."""
    return Fraction(str(x))


def fraction_within(x: Number, name: str, below_one: bool = False) -> Fraction:
    """`as_fraction(x)`, which must lie in [0, 1], or in [0, 1) with `below_one`; ValueError otherwise."""
    fraction = as_fraction(x, name)
    if not 0 <= fraction <= 1 or (below_one and fraction == 1):
        raise ValueError(f"{name} must lie in [0, 1{')' if below_one else ']'}, not {x}")
    return fraction


def round_half_up(x: Number, n: int) -> int:
    """floor(x * n + 1/2) in exact arithmetic: 0.3 of 5 is 2, 0.35 of 10 is 4."""
    return _rounded(x, int(n))  # in a trace a size is a tensor, in a compiled graph a symbol


@lru_cache(maxsize=1000, typed=True)  # asked anew in each step; Fraction(0.1) equals 0.1 and yet is another number
def _rounded(x: Number, n: int) -> int:
    product = as_fraction(x) * n
    return (2 * product.numerator + product.denominator) // (2 * product.denominator)


def round_half_up_each(x: Number, n: Tensor, largest: int) -> Tensor:
    """`round_half_up(x, n)` for every element of an int64 tensor with values in [0, `largest`], on its device."""
    fraction = as_fraction(x)
    numerator, denominator, largest = 2 * fraction.numerator, 2 * fraction.denominator, int(largest)
    if numerator * largest + denominator <= INT64_MAX:
        return (n * numerator + denominator // 2) // denominator
    # A prior with so many digits that int64 would overflow: look the counts up. To make the table waits for a device.
    asked = fraction, largest, n.device
    known = _TABLES.get(asked)
    if known is None:
        table = [(numerator * i + denominator // 2) // denominator for i in range(largest + 1)]
        known = torch.tensor(table, device=n.device)
        if type(known) is Tensor:  # no stand-in of a trace
            if len(_TABLES) == MOST_TABLES:
                _TABLES.clear()
            _TABLES[asked] = known
    return known[n]


def kept_count(n: int, prune_rate: Number) -> int:
    """How many of `n` weights stay when the fraction `prune_rate` is pruned: n - round_half_up(prune_rate * n)."""
    return int(n) - round_half_up(prune_rate, n)

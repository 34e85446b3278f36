"""The grid of a pruning sweep: models x methods x rates x trials, and any other field of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from typing import Any, get_type_hints

from ..methods import find_method
from ..recipes import PRUNE_SWEEP
from ..training import Run
from .experiment import Experiment, Grid, Setting, words

# Fields of a run that a sweep has options of its own for.
OPTION_OF = {"prune_rate": "--rates", "model": "--models", "method": "--methods", "seed": "--seed and --trials"}


@dataclass(frozen=True, kw_only=True)
class PruneSweep(Experiment):
    """What to sweep. An option that is not given takes the recipe's value."""

    recipes = PRUNE_SWEEP

    rates: str = "0.1..0.9"
    """fractions PRUNED (the reference MPT code's flag counts the kept): 0.1..0.9 (steps of 0.1), 0.1..0.9:0.2 (steps of
    0.2), 0.5, or several with commas"""
    methods: list[str] = field(default_factory=list)
    """methods, e.g. mpt-sign mpt-bihalf; one without a mask runs once and is drawn as a line (default: the recipe's)"""
    scope: str = "layer"
    """what edge-popup ranks scores within: layer, filter or global"""
    skip: list[str] = field(default_factory=list)
    """layers left real-valued: names, or the rules first, last, downsample; none skips none"""
    grid: list[str] = field(default_factory=list)
    """any other field of a run (python -m mpt_bihalf train --help lists them) with its values, e.g. lr=0.1,0.05
    scale=kaiming,l1; the items of one value are joined by +, e.g. milestones=10+20,15"""
    out: str = "runs/prune_sweep"
    """folder for runs, results.csv, table and figure"""

    def runs(self) -> list[Run]:
        """All runs of the sweep, each once, trials innermost. Raises ValueError, naming the option at fault."""
        self.chosen_recipe()
        rates = parse_rates(self.rates)
        common = {"scope": self.scope, "skip": tuple(words(self.skip))}
        axes = grid_axes(self.grid)

        def vary(method: str) -> Grid:
            own = rates if find_method(method).mask is not None else [0.0]
            return Grid([common], *axes, [{"prune_rate": rate} for rate in own])

        return self.runs_of(vary)


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


def grid_axes(grid: list[str]) -> list[list[Setting]]:
    """An axis for each entry `field=value,value`. ValueError for a field or value unknown."""
    types = get_type_hints(Run)
    names = [item.name for item in fields(Run)]
    axes: dict[str, list[Setting]] = {}
    for entry in grid:
        name, equals, values = entry.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not values:
            raise ValueError(f"grid {entry!r}: write field=value,value")
        if name in OPTION_OF:
            raise ValueError(f"grid {entry!r}: give {name} by {OPTION_OF[name]}")
        if name not in names:
            raise ValueError(f"grid {entry!r}: a run has no field {name!r}; it has {', '.join(names)}")
        if name in axes:
            raise ValueError(f"grid {entry!r}: {name} is given twice")
        axes[name] = [{name: _as_type(types[name], value.strip(), entry)} for value in values.split(",")]
    return list(axes.values())


def _as_type(kind: Any, text: str, entry: str) -> Any:
    """`text` as a value of a field of this type; a tuple's items are joined by `+`."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind == tuple[int, ...]:
            return tuple(int(item) for item in text.split("+"))
        if kind == tuple[str, ...]:
            return tuple(text.split("+"))
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "whole numbers with +")
        raise ValueError(f"grid {entry!r}: {text!r} is not {expected}") from None
    return text

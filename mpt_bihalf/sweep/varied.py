"""What tells runs apart: the fields that were varied, and a short name by these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..data import short_data
from ..endings import one_line
from ..training import Run
from ..training.names import WHERE, as_word

# What a setting is made of: all fields but what its trials differ in and what does not bear on the result.
SETTING = tuple(field.name for field in fields(Run) if field.name not in ("seed", *WHERE))
# Fields whose values speak for themselves.
LEADING = ("model", "data", "method")
# Fields that follow from others, such as a mask, and from the machine, where nothing else is said.
FOLLOWS = ("compute", "scope", "redraw_every", "redraw_share")


def varied_fields(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The fields of a setting, of those that the rows have, that were varied.

    Network, data and method were if there are several; another field if one method has several values of it, as
    methods differ by themselves in, say, their scale. What follows from other fields was varied only if it has several
    values where those have one. rows: alike, each with fields of a run.
    """
    names = [name for name in SETTING if rows and name in rows[0]]
    leading = [name for name in LEADING if name in names and len({row[name] for row in rows}) > 1]
    by_method = defaultdict(list)
    for row in rows:
        by_method[row.get("method", "")].append(row)
    others = [name for name in names if name not in LEADING]
    varied = [name for name in others if any(len({row[name] for row in some}) > 1 for some in by_method.values())]
    for name in set(FOLLOWS).intersection(varied):
        values = defaultdict(set)
        for row in rows:
            values[tuple(row[other] for other in names if other != name)].add(row[name])
        if max(map(len, values.values())) == 1:
            varied.remove(name)
    return leading + varied


def differing(runs: Iterable[Run]) -> list[str]:
    """As `varied_fields`, the seed among them where there are several, in the order of a run's fields."""
    rows = [vars(run) for run in runs]
    varied = {*varied_fields(rows), *(["seed"] if len({row["seed"] for row in rows}) > 1 else [])}
    return sorted(varied, key=[each.name for each in fields(Run)].index)


def short_name(run: Run, names: Sequence[str]) -> str:
    """The run by these of its fields, e.g. `mpt-sign prune_rate=0.5 seed=0`; its folder's name where there are none."""
    told = [short_data(run.data) if name == "data" else str(getattr(run, name)) for name in LEADING if name in names]
    told += [f"{name}={as_word(getattr(run, name))}" for name in names if name not in LEADING]
    return one_line(" ".join(told) or run.name)

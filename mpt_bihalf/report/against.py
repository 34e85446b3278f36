"""How methods differ from one of them, over equal seeds: what of a table is more than chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from ..endings import one_line
from .statistics import holm, p_text, paired
from .tables import Table, View, figure_name, number_text, row_label, split_settings, unit_of


def against_tables(records: pd.DataFrame, view: View, reference: str) -> list[Table]:
    """A table for each that `sweep_tables` makes: the mean difference from `reference` in each row, its interval and p.

    Paired over equal seeds. The interval is that of the t distribution; p is of the paired t test, by Holm (1979) over
    all comparisons of the table. ValueError where the reference is none of the columns, or nothing can be compared.
    """
    if not view.columns:  # one column: the rows are what there is to compare
        view = replace(view, columns=view.x, x="method" if view.x == "prune_rate" else "prune_rate")
    names = [str(name) for name in records[view.columns].unique()]
    if reference not in names:
        raise ValueError(f"against {reference!r}: the {view.columns}s are {', '.join(map(one_line, names))}")
    finished = records.reindex(columns=[*records.columns.union([view.figure])]).dropna(subset=[view.figure])
    tables = []
    for title, part in split_settings(finished, view):
        others = [name for name in dict.fromkeys(part[view.columns].astype(str)) if name != reference]
        rows = {}
        for value, here in part.groupby(view.x, sort=True, dropna=False):
            sides = {str(name): side.drop_duplicates("seed") for name, side in here.groupby(view.columns, sort=False)}
            if reference in sides:
                found = {n: paired(sides[n], sides[reference], view.figure) for n in others if n in sides}
                rows[row_label(view.x, value)] = {n: told for n, told in found.items() if told["pairs"]}
        rows = {label: found for label, found in rows.items() if found}
        if not rows:
            continue
        every = [told for found in rows.values() for told in found.values()]
        for told, p in zip(every, holm([told["p"] for told in every]), strict=True):
            told["p"] = p
        unit = " in points" if unit_of(view.figure) else ""
        what = f"{figure_name(view.figure)}, difference from {one_line(reference)}{unit} over equal seeds"
        tests = sum(not np.isnan(told["p"]) for told in every)
        how = "mean (pairs of runs)"
        if tests:
            how = f"mean [95 % interval of it alone], p by Holm over {tests} test{'s' * (tests != 1)}, (pairs of runs)"
        head = ["pruned" if view.x == "prune_rate" else view.x, *map(one_line, others)]
        body = [[label, *(_cell(found.get(n), view.figure) for n in others)] for label, found in rows.items()]
        tables.append(Table(f"{title}{': ' if title else ''}{what}: {how}", head, body))
    if not tables:
        raise ValueError(f"against {reference!r}: no finished run stands beside one of it with the same seed")
    return tables


def _cell(told: dict[str, float] | None, figure: str) -> str:
    if told is None:
        return ""
    mean, low, high = (_signed(told[name], figure) for name in ("difference", "low", "high"))
    if told["pairs"] < 2:
        return f"{mean} (1)"
    return f"{mean} [{low}, {high}], {p_text(told['p'])} ({int(told['pairs'])})"


def _signed(value: float, figure: str) -> str:
    text = number_text(value, figure)
    if not float(text):  # a NaN is not
        return text.removeprefix("-")
    return f"{'+' * bool(value > 0)}{text}"

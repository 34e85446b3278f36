"""Comparisons of methods over trials: mean, deviation, and paired tests over equal seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

TOP1 = "test_top1"
SIGNIFICANT = 0.05


def compare(
    records: list[dict[str, Any]] | pd.DataFrame,
    reference: str,
    by: tuple[str, ...] = ("model", "data"),
    figure: str = TOP1,
) -> pd.DataFrame:
    """A row for each method of each setting, with how it differs from the `reference` method.

    records: of runs, as `read_records` has them. by: the fields that make a setting. figure: the column that is
    compared. Columns: those of `by`, method, trials (finished ones), diverged, mean, std (of a sample), min and max of
    the figure, and what `paired` finds. NaN where there is nothing to tell, as for the reference itself.
    """
    frame = pd.DataFrame(records)
    if figure not in frame:
        frame[figure] = np.nan
    rows: list[dict[str, Any]] = []
    for setting, block in frame.groupby(list(by), sort=False, dropna=False):
        base = block[block["method"] == reference]
        for method, trials in block.groupby("method", sort=False):
            values = trials[figure].dropna()
            row = dict(zip(by, setting, strict=True)) | {
                "method": method,
                "trials": len(values),
                "diverged": len(trials) - len(values),
                "mean": values.mean(),
                "std": values.std(),
                "min": values.min(),
                "max": values.max(),
            }
            rows.append(row | paired(trials, base if method != reference else base[:0], figure))
    return pd.DataFrame(rows)


def paired(records: pd.DataFrame, reference: pd.DataFrame, figure: str = TOP1) -> dict[str, float]:
    """How records differ from reference records over the pairs of equal seed of which both are finished.

    difference: mean of the figure minus the reference's; pairs: how many; low, high: ends of its 95 % interval, by the
    t distribution; p: of the two-sided paired t test; p_ranks: of the two-sided Wilcoxon signed-rank test, which cannot
    fall below 0.05 with fewer than 6 pairs. No p is corrected for the number of tests (`holm`). NaN with fewer than two
    pairs, where none of them differs, and p also where all differ by the same, as nothing then says what chance does.
    ValueError where a seed stands twice on one side.
    """
    from scipy.stats import t, ttest_rel, wilcoxon  # half a second that not every command needs

    sides = [side.dropna(subset=[figure]).set_index("seed")[figure].astype(float) for side in (records, reference)]
    for side in sides:
        if not side.index.is_unique:
            seed = side.index[side.index.duplicated()][0]
            raise ValueError(f"seed {seed} stands twice among the runs to be paired: compare one setting at a time")
    both = pd.concat(sides, axis=1, join="inner", keys=["here", "there"])
    change = both["here"] - both["there"]
    found = {"difference": change.mean(), "pairs": len(change), "p": np.nan, "p_ranks": np.nan}
    found |= {"low": np.nan, "high": np.nan}
    if len(change) > 1:
        reach = t.ppf(0.975, len(change) - 1) * change.std() / len(change) ** 0.5
        found |= {"low": change.mean() - reach, "high": change.mean() + reach}
        rounding = 1e-9 * both.abs().to_numpy().max()  # equal figures may differ in their last bits
        if change.max() - change.min() > rounding:
            found["p"] = ttest_rel(both["here"], both["there"]).pvalue
        if change.abs().max() > rounding:
            found["p_ranks"] = wilcoxon(change.where(change.abs() > rounding, 0).round(9)).pvalue
    return found


def holm(values: Sequence[float]) -> list[float]:
    """Each p corrected for how many there are (Holm 1979): that some of them is below 0.05 by chance has 0.05 at most.

    Those that are NaN stay so, and do not count.
    """
    order = sorted((value, place) for place, value in enumerate(values) if not np.isnan(value))
    found, least = [float("nan")] * len(values), 0.0
    for rank, (value, place) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * value))
        found[place] = least
    return found


def reference_of(records: pd.DataFrame, preferred: str = "sign") -> str:
    """The method that the others are compared with: the preferred one, or without it the first of the records."""
    methods = list(records["method"])
    return preferred if preferred in methods else methods[0]


def p_text(p: float) -> str:
    """p as in a sentence: `p = 0.032`, `p < 0.001`, or that there is none."""
    if np.isnan(p):
        return "no p"
    digits = 4 if f"{p:.2g}" == str(SIGNIFICANT) else 2  # which side of it must be seen
    return "p < 0.001" if p < 0.001 else f"p = {p:.{digits}g}"


def diverged_texts(rows: pd.DataFrame) -> list[str]:
    """How many trainings of a method diverged, for each of which some did. rows: as `compare` has them."""
    return [
        f"{row['diverged']} of {row['diverged'] + row['trials']} trainings of {row['method']} diverged"
        for row in rows.drop_duplicates("method").to_dict("records")
        if row["diverged"]
    ]

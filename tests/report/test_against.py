"""Differences from one method over equal seeds: means, intervals and p by other formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from mpt_bihalf.report.against import against_tables
from mpt_bihalf.report.statistics import holm
from mpt_bihalf.report.tables import PRUNING

Trials = Callable[..., list[dict[str, Any]]]


def test_holm_multiplies_the_smallest_by_how_many_there_are_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    found = holm([0.02, float("nan"), 0.01])
    assert found[0] == pytest.approx(0.02)
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(0.02)


def test_cells_are_the_mean_difference_its_interval_and_p_over_all_of_the_table(trials: Trials) -> None:
    sign, ours, balanced = [50.0, 52.0, 57.0, 51.0], [51.0, 54.5, 57.5, 53.0], [49.0, 53.0, 56.0, 50.5]
    records = [*trials("mpt-sign", 0.5, sign), *trials("mpt-bihalf", 0.5, ours), *trials("mpt-balanced", 0.5, balanced)]
    (table,) = against_tables(pd.DataFrame(records), PRUNING, "mpt-sign")
    assert "difference from mpt-sign in points over equal seeds" in table.title
    assert "by Holm over 2 tests" in table.title
    assert table.head == ["pruned", "mpt-bihalf", "mpt-balanced"]
    tests = [ttest_rel(values, sign) for values in (ours, balanced)]
    adjusted = holm([test.pvalue for test in tests])
    for cell, test, values, p in zip(table.rows[0][1:], tests, (ours, balanced), adjusted, strict=True):
        low, high = test.confidence_interval(0.95)
        mean = np.mean(values) - np.mean(sign)
        assert cell == f"{mean:+.2f} [{low:+.2f}, {high:+.2f}], p = {p:.2g} (4)"


def test_only_equal_seeds_in_the_same_row_are_paired(trials: Trials) -> None:
    records = trials("mpt-sign", 0.5, [50.0, 52.0]) + trials("mpt-bihalf", 0.5, [None, 55.0])
    records += trials("mpt-bihalf", 0.9, [70.0, 71.0]) + trials("mpt-balanced", 0.9, [70.0, 71.0])
    (table,) = against_tables(pd.DataFrame(records), PRUNING, "mpt-sign")
    assert table.rows == [["50 %", "+3.00 (1)", ""]]


def test_what_cannot_be_compared_is_one_line(trials: Trials) -> None:
    records = pd.DataFrame(trials("mpt-sign", 0.5, [50.0, 52.0]) + trials("mpt-bihalf", 0.9, [50.0]))
    with pytest.raises(ValueError, match=r"^against 'bihalf': the methods are mpt-sign, mpt-bihalf$"):
        against_tables(records, PRUNING, "bihalf")
    with pytest.raises(ValueError, match="no finished run stands beside one of it with the same seed"):
        against_tables(records, PRUNING, "mpt-sign")

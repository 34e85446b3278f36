from __future__ import annotations

import pandas as pd
import pytest
from scipy.stats import ttest_rel

from mpt_bihalf.report.mask_controls import (
    CLAIM,
    MASKS,
    draw_mask_controls,
    mask_controls_curves,
    mask_controls_finding,
    mask_controls_rows,
)

TOP1 = {"learned": [70.0, 71.0, 75.0], "shuffled": [11.0, 9.0, 10.0], "random": [12.0, 15.0, 20.0]}


def frame(top1: dict[str, list[float]], rates: tuple[float, ...] = (0.5, 0.9)) -> pd.DataFrame:
    return pd.DataFrame(
        {"model": "conv2", "method": "mpt-sign", "prune_rate": rate, "seed": seed, "mask": mask, "test_top1": value}
        for rate in rates
        for mask, values in top1.items()
        for seed, value in enumerate(values)
    )


def reversed_() -> dict[str, list[float]]:
    return {"learned": TOP1["shuffled"], "shuffled": TOP1["learned"], "random": [80.0, 81.0, 85.0]}


def test_rows_have_the_means_deviations_and_tests_of_each_setting() -> None:
    rows = mask_controls_rows(frame(TOP1))
    assert [row["pruned, %"] for row in rows] == [50, 90]
    for row in rows:
        assert row["trials"] == 3
        assert [row[mask] for mask in MASKS] == [72, 10, pytest.approx(47 / 3)]
        assert row["shuffled std"] == 1
        for mask in ("shuffled", "random"):
            assert row[f"p against {mask}"] == pytest.approx(ttest_rel(TOP1["learned"], TOP1[mask]).pvalue)


def test_the_finding_is_that_of_the_records() -> None:
    forwards = mask_controls_finding(mask_controls_rows(frame(TOP1)))
    assert "beats a random one of the same count by 56.3 points" in forwards
    assert "beats itself shuffled within its layers by 62.0 points" in forwards and "in 2 of 2 settings" in forwards
    backwards = mask_controls_finding(mask_controls_rows(frame(reversed_())))
    assert "loses to a random one" in backwards and "loses to itself shuffled" in backwards
    assert "in 0 of 2 settings, in 0 with" in backwards
    same = mask_controls_finding(mask_controls_rows(frame({mask: [10.0, 20.0] for mask in MASKS})))
    assert "equals a random one" in same and "above it in 0 of 2 settings" in same
    assert "too few" in mask_controls_finding(mask_controls_rows(frame({"learned": [50.0]})))
    assert all("\n" not in line for line in (forwards, backwards, same, CLAIM))


def test_every_mask_is_a_line_with_a_label() -> None:
    figure = draw_mask_controls(frame(TOP1))
    (panel,) = figure.axes
    assert "%" in panel.get_xlabel() and "%" in panel.get_ylabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(MASKS.values())
    assert [line.get_ydata().tolist() for line in panel.get_lines()[:1]] == [[72, 72]]


def test_curves_are_means_by_rate() -> None:
    assert mask_controls_curves(frame(TOP1))["conv2/mpt-sign/learned"] == [(50, 72.0), (90, 72.0)]

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from mpt_bihalf.report.bit_ratio import (
    CLAIM,
    bit_ratio_curves,
    bit_ratio_finding,
    bit_ratio_rows,
    bit_ratio_runs,
    bit_ratio_steps,
    draw_bit_ratio,
)
from mpt_bihalf.report.figures import save_figure

Record = dict[str, Any]
Trials = Callable[..., list[Record]]

CONNECTIONS = {"0": 9, "2": 10}
# The nearest shares of 9 and of 10 connections, worked out by hand; halves go up.
NEAREST = {0.1: (1 / 9, 0.1), 0.25: (2 / 9, 0.3), 0.5: (5 / 9, 0.5), 0.9: (8 / 9, 0.9)}
SETTING = ("model", "data", "method", "p_pos", "seed")
PAPER = {0.1: [60.0, 61.0, 62.5], 0.25: [88.0, 90.5, 91.5], 0.5: [91.0, 92.0, 91.5], 0.9: [70.0, 71.5, 72.0]}
REVERSE = {0.1: [92.0, 93.0, 94.5], 0.5: [60.0, 61.5, 62.0], 0.9: [50.0, 51.5, 51.0]}


def trace_of(record: Record) -> pd.DataFrame:
    """Three traced steps: of bihalf the nearest shares in all filters, of the others shares of 0.2 to 0.7."""
    rows = []
    for step in (1, 2, 3):
        for place, (layer, connections) in enumerate(CONNECTIONS.items()):
            exact = record["method"] == "bihalf"
            share = np.float32(NEAREST[record["p_pos"]][place]) if exact else None
            entropy = 1.0 if share == 0.5 else 0.8
            rows.append(
                {name: record[name] for name in SETTING}
                | {"step": step, "layer": layer, "connections": connections}
                | {"filter_share_lowest": float(share) if exact else 0.2 + step / 100}
                | {"filter_share_highest": float(share) if exact else 0.7}
                | {"filter_entropy": entropy, "filter_entropy_std": 0.0}
            )
    return pd.DataFrame(rows)


def layers_of(record: Record) -> pd.DataFrame:
    """Two epochs; at the last, 30 of 40 weights and 20 of 60 are +1."""
    rows = [(1, 40, 0.9), (1, 60, 0.9), (2, 40, 0.75), (2, 60, 1 / 3)]
    setting = {name: record[name] for name in SETTING}
    return pd.DataFrame(
        [setting | {"epoch": epoch, "weights": n, "kept": 1.0, "positive_share": s} for epoch, n, s in rows]
    )


def measured(records: list[Record], change: Callable[[pd.DataFrame], None] = lambda trace: None) -> pd.DataFrame:
    trace = pd.concat([trace_of(record) for record in records], ignore_index=True)
    change(trace)
    layers = pd.concat([layers_of(record) for record in records], ignore_index=True)
    return bit_ratio_runs(records, layers, bit_ratio_steps(trace))


@pytest.fixture
def records_of(trials: Trials) -> Callable[..., list[Record]]:
    def make(accuracies: dict[float, list[float | None]], **fields: Any) -> list[Record]:
        return [
            record for p, values in accuracies.items() for record in trials("bihalf", 0.0, values, p_pos=p, **fields)
        ]

    return make


@pytest.fixture
def paper(records_of: Callable[..., list[Record]], trials: Trials) -> list[Record]:
    return [*records_of(PAPER), *trials("sign", 0.0, [88.0, 90.0, 89.0])]


def test_the_nearest_share_is_that_of_the_decimal_ratio_rounded_half_up(paper: list[Record]) -> None:
    trace = pd.concat([trace_of(record) for record in paper], ignore_index=True)
    steps = bit_ratio_steps(trace)
    for (p, connections), part in steps[steps["method"] == "bihalf"].groupby(["p_pos", "connections"]):
        assert set(part["nearest"]) == {NEAREST[p][connections == 10]}
        assert part["exact"].tolist() == [True] * len(part)
    assert steps[steps["method"] == "sign"][["nearest", "exact"]].isna().all(axis=None)


@pytest.mark.parametrize("end", ["lowest", "highest"])
@pytest.mark.parametrize("off", [1 / 10, -1 / 10, 1e-6])
def test_one_filter_off_at_one_step_is_found(end: str, off: float, paper: list[Record]) -> None:
    def change(trace: pd.DataFrame) -> None:
        trace.loc[22, f"filter_share_{end}"] += off  # of p_pos 0.25

    runs = measured(paper, change)
    rows = {row["p_pos"]: row["exact in each filter"] for row in bit_ratio_rows(runs)}
    assert rows == {0.1: "yes", 0.25: "no", 0.5: "yes", 0.9: "yes", None: None}
    assert bit_ratio_finding(runs).endswith(
        "the share of +1 was NOT always the nearest possible in each filter: missed in 1 of 12 runs, p_pos 0.25"
    )


def test_a_mask_leaves_an_unknown_number_of_connections(trials: Trials) -> None:
    steps = bit_ratio_steps(trace_of(trials("mpt-bihalf", 0.5, [90.0])[0]))
    assert steps["exact"].isna().all()


def test_a_run_has_its_share_at_the_end(paper: list[Record]) -> None:
    runs = measured(paper)
    assert runs["share"].tolist() == pytest.approx([0.5] * len(runs))
    sign = runs[runs["method"] == "sign"].iloc[0]
    assert (sign["share_lowest"], sign["share_highest"], sign["steps"]) == (0.23, 0.7, 3)


def test_a_row_for_each_ratio_and_for_each_method_without(paper: list[Record]) -> None:
    rows = bit_ratio_rows(measured(paper))
    assert [(row["method"], row["p_pos"]) for row in rows] == [*(("bihalf", p) for p in PAPER), ("sign", None)]
    assert [row["test_top1"] for row in rows] == pytest.approx([*(np.mean(v) for v in PAPER.values()), 89.0])
    assert rows[-1]["test_top1_std"] == 1.0
    assert {(row["trials"], row["diverged"]) for row in rows} == {(3, 0)}
    assert (rows[0]["share_lowest"], rows[0]["share_highest"]) == pytest.approx((0.1, 1 / 9))


def test_the_finding_names_the_best_ratio_and_what_the_extremes_lose(paper: list[Record]) -> None:
    assert bit_ratio_finding(measured(paper)) == (
        "conv2, digits: bihalf is best at p_pos 0.5 (91.50 %), 0.1 loses 30.33 points and 0.9 loses 20.33 points, "
        "not told apart from it by a paired t test: 0.25; the share of +1 was the nearest possible in each filter at "
        "all 36 traced steps of 12 runs, and at p_pos 0.5 the entropy of filters of an even number of connections was "
        "exactly 1 bit"
    )


def test_the_finding_is_reversed_with_the_records(records_of: Callable[..., list[Record]]) -> None:
    finding = bit_ratio_finding(measured(records_of(REVERSE)))
    assert finding.startswith(
        "conv2, digits: bihalf is best at p_pos 0.1 (93.17 %), 0.9 loses 42.33 points and 0.5 loses 32.00 points, "
        "not told apart from it by a paired t test: none; "
    )


def test_less_than_one_bit_at_equal_ratios_is_told(paper: list[Record]) -> None:
    def change(trace: pd.DataFrame) -> None:
        trace.loc[(trace["p_pos"] == 0.5) & (trace["connections"] == 10), "filter_entropy"] = np.float32(1 - 1e-7)

    assert bit_ratio_finding(measured(paper, change)).endswith("connections was NOT always 1 bit")


def test_less_than_one_bit_in_one_run_counts(paper: list[Record]) -> None:
    def change(trace: pd.DataFrame) -> None:
        trace.loc[(trace["p_pos"] == 0.5) & (trace["connections"] == 10) & (trace["seed"] == 1), "filter_entropy"] = 0.9

    assert bit_ratio_finding(measured(paper, change)).endswith("connections was NOT always 1 bit")


def test_the_finding_says_where_there_is_too_little_to_tell(
    records_of: Callable[..., list[Record]], trials: Trials
) -> None:
    single = bit_ratio_finding(measured(records_of({0.1: [60.0], 0.5: [90.0]})))
    assert "one trial each is too little to tell this from chance" in single and "t test" not in single
    assert "has finished runs of fewer than two ratios" in bit_ratio_finding(measured(records_of({0.5: [90.0, 91.0]})))
    lost = bit_ratio_finding(measured(records_of({0.1: [None, None], 0.25: [80.0, 81.0], 0.5: [90.0, 92.0]})))
    assert "0.25 loses 10.50 points" in lost and "2 of 6 runs diverged" in lost
    without = bit_ratio_finding(measured(trials("sign", 0.0, [90.0, 91.0])))
    assert without == (
        "conv2, digits: no method was given a ratio; no ratio was asked for that the trace could be held against"
    )


def test_ratios_that_differ_by_nothing_or_by_the_same(records_of: Callable[..., list[Record]]) -> None:
    finding = bit_ratio_finding(measured(records_of({0.1: [90.0, 91.0], 0.5: [90.0, 91.0], 0.9: [80.0, 81.0]})))
    assert "best at p_pos 0.1" in finding and "0.5 loses 0.00 points" in finding
    assert "t test: 0.5;" in finding


def test_each_data_set_has_its_words_and_its_panel(records_of: Callable[..., list[Record]]) -> None:
    runs = measured([*records_of(PAPER, data="cifar10"), *records_of(REVERSE, data="cifar100")])
    finding = bit_ratio_finding(runs)
    assert "conv2, cifar10: bihalf is best at p_pos 0.5" in finding
    assert "conv2, cifar100: bihalf is best at p_pos 0.1" in finding
    assert [panel.get_title() for panel in draw_bit_ratio(runs).axes] == ["conv2, cifar10", "conv2, cifar100"]


def test_finding_and_claim_are_one_line_each(paper: list[Record]) -> None:
    assert "\n" not in CLAIM + bit_ratio_finding(measured(paper))


def test_the_picture_has_labels_a_legend_and_means_with_their_deviations(paper: list[Record]) -> None:
    (panel,) = draw_bit_ratio(measured(paper)).axes
    assert panel.get_xlabel() == "share of +1 among the weights (p_pos)"
    assert panel.get_ylabel() == "test top-1 accuracy (%)"
    texts = [text.get_text() for text in panel.get_legend().get_texts()]
    assert texts == ["equal bits", "bihalf, as p_pos says", "sign, as it ends up"]
    bihalf, sign = (drawn for drawn in panel.containers if isinstance(drawn, ErrorbarContainer))
    assert bihalf.lines[0].get_xydata().tolist() == pytest.approx(
        np.array([[p, np.mean(values)] for p, values in PAPER.items()])
    )
    (bars,) = bihalf.lines[2]
    first = sorted(bars.get_segments()[0][:, 1])
    mean, std = np.mean(PAPER[0.1]), np.std(PAPER[0.1], ddof=1)
    assert first == pytest.approx([mean - std, mean + std])
    assert sign.lines[0].get_xydata().tolist() == [[pytest.approx(0.5), 89.0]]
    assert [0.23, 0.7] in [list(line.get_xdata()) for line in panel.lines]


def test_runs_that_all_diverged_are_drawn_and_told_too(
    records_of: Callable[..., list[Record]], trials: Trials, tmp_path: Path
) -> None:
    records = [*records_of({0.1: [None], 0.5: [None]}), *trials("sign", 0.0, [None])]
    runs = bit_ratio_runs(records, pd.DataFrame(), bit_ratio_steps(pd.DataFrame()))
    assert "3 of 3 runs diverged" in bit_ratio_finding(runs)
    assert {row["diverged"] for row in bit_ratio_rows(runs)} == {1}
    assert bit_ratio_curves(runs) == {}
    assert all(path.exists() for path in save_figure(draw_bit_ratio(runs), tmp_path / "figure"))


def test_curves_for_tensorboard_count_thousandths(paper: list[Record]) -> None:
    curves = bit_ratio_curves(measured(paper))
    assert curves["test_top1/conv2-digits-bihalf"] == [
        (round(1000 * p), pytest.approx(np.mean(values))) for p, values in PAPER.items()
    ]
    assert curves["test_top1/conv2-digits-sign"] == [(500, 89.0)]

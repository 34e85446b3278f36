from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from mpt_bihalf.experiments import bit_ratio
from mpt_bihalf.report.figures import save_figure
from mpt_bihalf.training import Run

OPTIONS = ["--width", "0.25", "--trials", "1", "--ratios", "0.5,0.9", "--methods", "bihalf", "sign"]
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
    return bit_ratio.per_run(records, layers, bit_ratio.per_step(trace))


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
    steps = bit_ratio.per_step(trace)
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
    rows = {row["p_pos"]: row["exact in each filter"] for row in bit_ratio.rows_of(runs)}
    assert rows == {0.1: "yes", 0.25: "no", 0.5: "yes", 0.9: "yes", None: None}
    assert bit_ratio.finding_of(runs).endswith(
        "the share of +1 was NOT always the nearest possible in each filter: missed in 1 of 12 runs, p_pos 0.25"
    )


def test_a_mask_leaves_an_unknown_number_of_connections(trials: Trials) -> None:
    steps = bit_ratio.per_step(trace_of(trials("mpt-bihalf", 0.5, [90.0])[0]))
    assert steps["exact"].isna().all()


def test_a_run_has_its_share_at_the_end(paper: list[Record]) -> None:
    runs = measured(paper)
    assert runs["share"].tolist() == pytest.approx([0.5] * len(runs))
    sign = runs[runs["method"] == "sign"].iloc[0]
    assert (sign["share_lowest"], sign["share_highest"], sign["steps"]) == (0.23, 0.7, 3)


def test_a_row_for_each_ratio_and_for_each_method_without(paper: list[Record]) -> None:
    rows = bit_ratio.rows_of(measured(paper))
    assert [(row["method"], row["p_pos"]) for row in rows] == [*(("bihalf", p) for p in PAPER), ("sign", None)]
    assert [row["test_top1"] for row in rows] == pytest.approx([*(np.mean(v) for v in PAPER.values()), 89.0])
    assert rows[-1]["test_top1_std"] == 1.0
    assert {(row["trials"], row["diverged"]) for row in rows} == {(3, 0)}
    assert (rows[0]["share_lowest"], rows[0]["share_highest"]) == pytest.approx((0.1, 1 / 9))


def test_the_finding_names_the_best_ratio_and_what_the_extremes_lose(paper: list[Record]) -> None:
    finding = bit_ratio.finding_of(measured(paper))
    assert "best at p_pos 0.5 (91.50 %), 0.1 loses 30.33 points and 0.9 loses 20.33 points" in finding
    assert "by a paired t test: 0.25; " in finding
    assert "at all 36 traced steps of 12 runs" in finding and finding.endswith("was exactly 1 bit")


def test_the_finding_is_reversed_with_the_records(records_of: Callable[..., list[Record]]) -> None:
    finding = bit_ratio.finding_of(measured(records_of(REVERSE)))
    assert finding.startswith(
        "conv2, digits: bihalf is best at p_pos 0.1 (93.17 %), 0.9 loses 42.33 points and 0.5 loses 32.00 points, "
        "not told apart from it by a paired t test: none; "
    )


def test_less_than_one_bit_at_equal_ratios_is_told(paper: list[Record]) -> None:
    def change(trace: pd.DataFrame) -> None:
        trace.loc[(trace["p_pos"] == 0.5) & (trace["connections"] == 10), "filter_entropy"] = np.float32(1 - 1e-7)

    assert bit_ratio.finding_of(measured(paper, change)).endswith("connections was NOT always 1 bit")


def test_less_than_one_bit_in_one_run_counts(paper: list[Record]) -> None:
    def change(trace: pd.DataFrame) -> None:
        trace.loc[(trace["p_pos"] == 0.5) & (trace["connections"] == 10) & (trace["seed"] == 1), "filter_entropy"] = 0.9

    assert bit_ratio.finding_of(measured(paper, change)).endswith("connections was NOT always 1 bit")


def test_the_finding_says_where_there_is_too_little_to_tell(
    records_of: Callable[..., list[Record]], trials: Trials
) -> None:
    single = bit_ratio.finding_of(measured(records_of({0.1: [60.0], 0.5: [90.0]})))
    assert "one trial each is too little to tell this from chance" in single and "t test" not in single
    assert "has finished runs of fewer than two ratios" in bit_ratio.finding_of(
        measured(records_of({0.5: [90.0, 91.0]}))
    )
    lost = bit_ratio.finding_of(measured(records_of({0.1: [None, None], 0.25: [80.0, 81.0], 0.5: [90.0, 92.0]})))
    assert "0.25 loses 10.50 points" in lost and "2 of 6 runs diverged" in lost
    without = bit_ratio.finding_of(measured(trials("sign", 0.0, [90.0, 91.0])))
    assert without == (
        "conv2, digits: no method was given a ratio; no ratio was asked for that the trace could be held against"
    )


def test_ratios_that_differ_by_nothing_or_by_the_same(records_of: Callable[..., list[Record]]) -> None:
    finding = bit_ratio.finding_of(measured(records_of({0.1: [90.0, 91.0], 0.5: [90.0, 91.0], 0.9: [80.0, 81.0]})))
    assert "best at p_pos 0.1" in finding and "0.5 loses 0.00 points" in finding
    assert "t test: 0.5;" in finding


def test_each_data_set_has_its_words_and_its_panel(records_of: Callable[..., list[Record]]) -> None:
    runs = measured([*records_of(PAPER, data="cifar10"), *records_of(REVERSE, data="cifar100")])
    finding = bit_ratio.finding_of(runs)
    assert "conv2, cifar10: bihalf is best at p_pos 0.5" in finding
    assert "conv2, cifar100: bihalf is best at p_pos 0.1" in finding
    assert [panel.get_title() for panel in bit_ratio.draw(runs).axes] == ["conv2, cifar10", "conv2, cifar100"]


def test_the_picture_has_means_with_their_deviations(paper: list[Record]) -> None:
    (panel,) = bit_ratio.draw(measured(paper)).axes
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
    runs = bit_ratio.per_run(records, pd.DataFrame(), bit_ratio.per_step(pd.DataFrame()))
    assert "3 of 3 runs diverged" in bit_ratio.finding_of(runs)
    assert {row["diverged"] for row in bit_ratio.rows_of(runs)} == {1}
    assert bit_ratio.curves_of(runs) == {}
    assert all(path.exists() for path in save_figure(bit_ratio.draw(runs), tmp_path / "figure"))


def test_curves_for_tensorboard_count_thousandths(paper: list[Record]) -> None:
    curves = bit_ratio.curves_of(measured(paper))
    assert curves["test_top1/conv2-digits-bihalf"] == [
        (round(1000 * p), pytest.approx(np.mean(values))) for p, values in PAPER.items()
    ]
    assert curves["test_top1/conv2-digits-sign"] == [(500, 89.0)]


def test_what_is_given_goes_before_the_recipe(runs_of: Callable[..., list[Run]]) -> None:
    found = runs_of(recipe="paper", data="digits", ratios="0.25,0.75", methods=["mpt-balanced", "bop"], trials=1)
    assert [(run.data, run.method, run.p_pos) for run in found] == [
        ("digits", "mpt-balanced", 0.25), ("digits", "mpt-balanced", 0.75), ("digits", "bop", 0.5)
    ]  # fmt: skip


def test_ratios_that_the_command_sets_are_exact(done: Any) -> None:
    assert "bihalf is best at p_pos 0.5" in done.measured() and "exactly 1 bit" in done.measured()
    assert "at all 44 traced steps of 2 runs" in done.measured()  # 22 steps an epoch
    table = done.table()
    assert table["method"].tolist() == ["bihalf", "bihalf", "sign"]
    assert table["p_pos"].fillna(-1).tolist() == [0.5, 0.9, -1]
    assert table["exact in each filter"].fillna("").tolist() == ["yes", "yes", ""]
    steps = done.table("bit_ratio_steps")
    assert len(steps) == 3 * 22 * 5
    # Conv2 of a quarter of its width on 8x8 grey images.
    assert steps.drop_duplicates("layer")["connections"].tolist() == [9, 16 * 9, 16 * 4 * 4, 64, 64]
    nine = steps[(steps["method"] == "bihalf") & (steps["p_pos"] == 0.9) & (steps["layer"] == "0")]
    assert nine["filter_share_lowest"].tolist() == pytest.approx([8 / 9] * 22)
    assert [step for step, _ in done.curves()["test_top1/conv2-digits-bihalf"]] == [500, 900]


@pytest.mark.parametrize("bad", [["--ratios", "1.5"], ["--ratios", "0.9..0.1"], ["--methods", "dense"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], refused: Callable[..., str]) -> None:
    error = refused(*bad)
    assert "ratios" in error or "dense" in error

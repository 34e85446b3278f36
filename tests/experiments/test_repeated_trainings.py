from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel, wilcoxon

from mpt_bihalf.experiments import repeated_trainings
from mpt_bihalf.report.figures import save_figure

OPTIONS = ["--width", "0.25", "--trials", "2"]
Trials = Callable[..., list[dict[str, Any]]]
Trainings = Callable[..., pd.DataFrame]

SIGN = [95.0, 95.5, 94.5, 96.0, 95.2, 95.4, 95.1, 94.9]
BETTER = [97.0, 96.8, 97.1, 97.3, 96.5, 97.4, 97.2, 96.9]
# As good on average, once above and once below.
LEVEL = [95.5, 95.0, 95.0, 95.5, 95.7, 94.9, 95.6, 94.4]


@pytest.fixture
def trainings(trials: Trials) -> Trainings:
    """Records of methods with a test top-1 for each seed, None where it diverged; the other figures follow from it."""

    def make(model: str = "conv2", **accuracies: list[float | None]) -> pd.DataFrame:
        records = []
        for method, values in accuracies.items():
            for record in trials(method, 0.0, values, model=model):
                top1 = record.get("test_top1")
                if top1 is not None:
                    loss = (100 - top1) / 10
                    record |= {"train_loss": loss / 2, "test_loss": loss, "train_top1": top1 + 1}
                records.append(record)
        return pd.DataFrame(records)

    return make


def test_the_finding_tells_what_is_better_by_how_much_and_how_surely(trainings: Trainings) -> None:
    finding = repeated_trainings.finding_of(trainings(sign=SIGN, bihalf=BETTER))
    assert finding.startswith("conv2 on digits: bihalf against sign over 8 equal seeds is better in train loss (")
    assert f"test top-1 ({np.mean(BETTER):.4g} to {np.mean(SIGN):.4g} %, p < 0.001)" in finding
    assert "worse" not in finding and "not significantly" not in finding
    assert finding.endswith("by paired t tests; Wilcoxon's signed-rank test agrees")
    assert "\n" not in finding


def test_the_finding_is_reversed_with_the_records(trainings: Trainings) -> None:
    finding = repeated_trainings.finding_of(trainings(sign=BETTER, bihalf=SIGN))
    assert "bihalf against sign over 8 equal seeds is worse in train loss (" in finding
    assert "better" not in finding


def test_more_accurate_and_less_loss_are_both_better(trainings: Trainings) -> None:
    frame = trainings(sign=SIGN, bihalf=BETTER)
    frame["test_loss"] = -frame["test_loss"]
    finding = repeated_trainings.finding_of(frame)
    better, worse = finding.split("worse in")
    assert "train loss" in better and "train top-1" in better and "test top-1" in better
    assert "test loss" in worse


def test_a_difference_that_chance_explains_is_told_as_such(trainings: Trainings) -> None:
    finding = repeated_trainings.finding_of(trainings(sign=SIGN, bihalf=LEVEL))
    p = ttest_rel(LEVEL, SIGN).pvalue
    assert p > 0.05
    assert "sign over 8 equal seeds is not significantly different in train loss" in finding
    assert f"p = {p:.2g}" in finding
    assert "better" not in finding


def test_tests_that_disagree_are_told(trainings: Trainings) -> None:
    # One difference far from the others spoils the t test; to the ranks it is only the largest.
    shifted = [value + step for value, step in zip(SIGN, [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 9], strict=True)]
    assert ttest_rel(shifted, SIGN).pvalue > 0.05 > wilcoxon(np.subtract(shifted, SIGN)).pvalue
    finding = repeated_trainings.finding_of(trainings(sign=SIGN, bihalf=shifted))
    assert "Wilcoxon's signed-rank test disagrees on train loss, test loss, train top-1, test top-1" in finding


def test_few_pairs_are_too_few_for_ranks(trainings: Trainings) -> None:
    finding = repeated_trainings.finding_of(trainings(sign=SIGN[:5], bihalf=BETTER[:5]))
    assert finding.endswith("Wilcoxon's signed-rank test can tell nothing from 5 pairs")


def test_one_training_each_tells_nothing(trainings: Trainings) -> None:
    assert repeated_trainings.finding_of(trainings(sign=[90.0], bihalf=[99.0])) == (
        "conv2 on digits: bihalf cannot be told from sign by one pair of finished trainings"
    )


def test_diverged_trainings_are_told(trainings: Trainings) -> None:
    finding = repeated_trainings.finding_of(trainings(sign=[None, *SIGN[1:]], bihalf=BETTER))
    assert "over 7 equal seeds" in finding
    assert finding.endswith("; 1 of 8 trainings of sign diverged")
    assert repeated_trainings.finding_of(trainings(sign=[None, None], bihalf=[90.0, None])) == (
        "conv2 on digits: bihalf cannot be told from sign by no pair of finished trainings; "
        "1 of 2 trainings of bihalf diverged; 2 of 2 trainings of sign diverged"
    )


def test_each_network_and_method_is_told_and_without_sign_the_first_is_the_reference(trainings: Trainings) -> None:
    frame = pd.concat([trainings(m, irnet=SIGN, bihalf=BETTER, dense=LEVEL) for m in ("conv2", "conv4")])
    parts = repeated_trainings.finding_of(frame).split(" | ")
    assert [part.split(" over ")[0] for part in parts] == [
        f"{model} on digits: {method} against irnet" for model in ("conv2", "conv4") for method in ("bihalf", "dense")
    ]


def test_one_method_alone_is_compared_with_nothing(trainings: Trainings) -> None:
    assert repeated_trainings.finding_of(trainings(sign=SIGN)) == (
        "only sign was trained: there is nothing to compare it with"
    )


def test_a_row_for_each_figure_and_method(trainings: Trainings) -> None:
    rows = repeated_trainings.rows_of(trainings(sign=SIGN, bihalf=[*BETTER[:7], None]))
    assert [(row["figure"], row["method"]) for row in rows] == [
        (figure, method) for figure in repeated_trainings.FIGURES for method in ("sign", "bihalf")
    ]
    row = rows[-1]
    there, here = np.array(SIGN[:7]), np.array(BETTER[:7])
    assert (row["model"], row["data"], row["trials"], row["diverged"], row["pairs"]) == ("conv2", "digits", 7, 1, 7)
    found = [row[name] for name in ("mean", "std", "min", "max", "difference", "p", "p_ranks")]
    assert found == pytest.approx(
        [here.mean(), here.std(ddof=1), here.min(), here.max(), (here - there).mean()]
        + [ttest_rel(here, there).pvalue, wilcoxon(here - there).pvalue]
    )
    train_loss = rows[1]
    assert (train_loss["figure"], train_loss["mean"]) == ("train_loss", pytest.approx((100 - here.mean()) / 20))


def test_the_curves_are_sorted_values_by_rank(trainings: Trainings) -> None:
    curves = repeated_trainings.curves_of(trainings(sign=SIGN[:3], bihalf=[97.0, None, 96.0]))
    assert set(curves) == {
        f"{figure}/conv2/{method}" for figure in repeated_trainings.FIGURES for method in ("sign", "bihalf")
    }
    assert curves["test_top1/conv2/sign"] == [(1, 94.5), (2, 95.0), (3, 95.5)]
    assert curves["test_top1/conv2/bihalf"] == [(1, 96.0), (2, 97.0)]


def test_above_is_every_training_and_the_mean_below_the_sorted_values(trainings: Trainings) -> None:
    figure = repeated_trainings.draw(trainings(sign=SIGN, bihalf=BETTER))
    above, below = figure.axes[3], figure.axes[7]
    points = [drawn.get_offsets()[:, 1] for drawn in above.collections if len(drawn.get_offsets()) == len(SIGN)]
    assert [sorted(found) for found in points] == [sorted(SIGN), sorted(BETTER)]
    means = [line.get_ydata()[0] for line in above.lines if line.get_marker() == "D"]
    assert means == pytest.approx([np.mean(SIGN), np.mean(BETTER)])
    assert [label.get_text() for label in above.get_xticklabels()] == ["sign", "bihalf"]
    for line, values in zip(below.lines, (SIGN, BETTER), strict=True):
        assert line.get_xdata().tolist() == list(range(1, 9))
        assert line.get_ydata().tolist() == sorted(values)


def test_each_network_has_two_rows_of_panels(trainings: Trainings) -> None:
    frame = pd.concat([trainings(model, sign=SIGN, bihalf=BETTER) for model in ("conv2", "conv4")])
    panels = repeated_trainings.draw(frame).axes
    assert len(panels) == 16
    assert [panels[place].get_title().split(",")[0] for place in (0, 8)] == ["conv2", "conv4"]


@pytest.mark.parametrize(
    "accuracies",
    [
        {"sign": [95.0, 95.0], "bihalf": [96.0, None]},
        {"sign": [None], "bihalf": [None]},
    ],
)
def test_few_equal_or_diverged_trainings_are_drawn_too(
    accuracies: dict[str, list[float | None]], trainings: Trainings, tmp_path: Path
) -> None:
    figure = repeated_trainings.draw(trainings(**accuracies))
    assert all(path.exists() for path in save_figure(figure, tmp_path / "figure"))


def test_the_command_compares_the_records(done: Any) -> None:
    assert "conv2 on digits: bihalf against sign over 2 equal seeds is " in done.measured()
    results, curves = done.table("results"), done.curves()
    assert results[["method", "seed"]].to_numpy().tolist() == [[m, s] for m in ("sign", "bihalf") for s in (0, 1)]
    rows = done.table()
    for row in rows[rows["figure"] == "test_top1"].to_dict("records"):
        values = results[results["method"] == row["method"]]["test_top1"]
        assert row["mean"] == pytest.approx(values.mean())
        assert curves[f"test_top1/conv2/{row['method']}"] == [
            (rank, pytest.approx(value)) for rank, value in enumerate(sorted(values), 1)
        ]


def test_a_second_call_leaves_the_same_files(done: Any) -> None:
    left = {ending: (done.out / f"repeated_trainings{ending}").read_bytes() for ending in (".csv", ".png", ".pdf")}
    assert done.measured() in done.again()
    assert {ending: (done.out / f"repeated_trainings{ending}").read_bytes() for ending in left} == left


@pytest.mark.parametrize(
    "bad", ["--trials=0", "--trials=x", "--methods=", "--models=conv3", "--recipe=fast", "--tral=1"]
)
def test_a_bad_option_ends_in_one_line_and_changes_nothing(bad: str, refused: Callable[..., str]) -> None:
    assert refused(*OPTIONS, bad)

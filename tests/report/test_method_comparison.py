from __future__ import annotations

from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from mpt_bihalf.report.figures import OWN_COLOUR, save_figure
from mpt_bihalf.report.method_comparison import (
    CLAIM,
    draw_method_comparison,
    method_comparison_curves,
    method_comparison_finding,
    method_comparison_rows,
    published_elsewhere,
)

Trials = Callable[..., list[dict[str, Any]]]
Comparison = Callable[..., pd.DataFrame]

SIGN = [77.0, 77.5, 78.0]
IRNET = [78.0, 77.6, 78.1]
BIHALF = [79.0, 79.6, 80.2]


@pytest.fixture
def comparison(trials: Trials) -> Comparison:
    """Records of methods with a test top-1 for each seed, None where it diverged."""

    def make(model: str = "conv2", data: str = "cifar10", **accuracies: list[float | None]) -> pd.DataFrame:
        return pd.DataFrame(
            [
                record
                for method, values in accuracies.items()
                for record in trials(method, 0.0, values, model=model, data=data)
            ]
        )

    return make


def finding(frame: pd.DataFrame) -> str:
    return method_comparison_finding(method_comparison_rows(frame))


def test_the_finding_ranks_the_methods_and_tells_what_is_significant(comparison: Comparison) -> None:
    p_irnet = ttest_rel(IRNET, SIGN).pvalue
    assert ttest_rel(BIHALF, SIGN).pvalue < 0.001 < 0.05 < p_irnet
    assert finding(comparison(sign=SIGN, irnet=IRNET, bihalf=BIHALF)) == (
        "conv2 on cifar10: bihalf 79.60 > irnet 77.90 > sign 77.50 %; "
        "bihalf +2.10 points on sign (significant over 3 equal seeds, p < 0.001); "
        f"irnet +0.40 points on sign (not significant over 3 equal seeds, p = {p_irnet:.2g})"
    )


def test_the_finding_is_reversed_with_the_records(comparison: Comparison) -> None:
    told = finding(comparison(sign=BIHALF, irnet=IRNET, bihalf=SIGN))
    assert told.startswith("conv2 on cifar10: sign 79.60 > irnet 77.90 > bihalf 77.50 %; ")
    assert "bihalf -2.10 points on sign (significant over 3 equal seeds, " in told


def test_equal_means_share_a_rank(comparison: Comparison) -> None:
    assert "bihalf 77.50 = sign 77.50 %" in finding(comparison(bihalf=[77.0, 78.0], sign=[78.0, 77.0]))


def test_one_trial_is_too_few(comparison: Comparison) -> None:
    assert finding(comparison(sign=[77.0], bihalf=[79.0])) == (
        "conv2 on cifar10: bihalf 79.00 > sign 77.00 %; "
        "bihalf +2.00 points on sign in one pair of trials, too few to tell from chance"
    )


def test_pairs_that_differ_alike_have_no_test(comparison: Comparison) -> None:
    told = finding(comparison(sign=SIGN, bihalf=[value + 1 for value in SIGN]))
    assert told.endswith("bihalf +1.00 points on sign in each of 3 pairs alike, without a spread to test")


def test_diverged_trials_are_told(comparison: Comparison) -> None:
    told = finding(comparison(sign=[*SIGN, 60.0], bihalf=[*BIHALF, None], irnet=[None, None, None, None]))
    assert told.startswith("conv2 on cifar10: bihalf 79.60 > sign 73.12 %; bihalf +2.10 points on sign")
    assert told.endswith("1 of 4 trainings of bihalf diverged; 4 of 4 trainings of irnet diverged")
    assert finding(comparison(sign=[None], bihalf=[None])).startswith("conv2 on cifar10: no finished trial; 1 of 1")
    assert "bihalf +" not in finding(comparison(sign=[None, None], bihalf=[79.0, 79.5]))


def test_each_network_has_its_own_ranking_in_one_line(comparison: Comparison) -> None:
    frame = pd.concat([comparison("conv2", sign=SIGN, bihalf=BIHALF), comparison("conv4", sign=BIHALF, bihalf=SIGN)])
    first, second = finding(frame).split(" | ")
    assert first.startswith("conv2 on cifar10: bihalf 79.60 > sign 77.50 %")
    assert second.startswith("conv4 on cifar10: sign 79.60 > bihalf 77.50 %")
    assert "\n" not in finding(frame)


def test_without_sign_the_first_method_is_the_reference(comparison: Comparison) -> None:
    assert "bihalf +1.70 points on irnet" in finding(comparison(irnet=IRNET, bihalf=BIHALF))


def test_the_claim_is_one_line_with_the_numbers_of_the_paper() -> None:
    for number in ("79.25", "87.68", "89.92", "90.40", "78.32", "90.06", "77.86", "89.17"):
        assert number in CLAIM
    assert "\n" not in CLAIM


def test_a_row_has_settings_figures_tests_and_what_is_published(comparison: Comparison) -> None:
    rows = method_comparison_rows(comparison(sign=SIGN, irnet=IRNET, bihalf=[*BIHALF, None]))
    assert [row["method"] for row in rows] == ["sign", "irnet", "bihalf"]
    row = rows[2]
    assert {name: row[name] for name in ("model", "data", "scale", "lr", "weight_decay", "trials", "diverged")} == {
        "model": "conv2", "data": "cifar10", "scale": "kaiming", "lr": 0.1, "weight_decay": 1e-4, "trials": 3,
        "diverged": 1,
    }  # fmt: skip
    assert (row["mean"], row["std"]) == pytest.approx((79.6, 0.6))
    assert (row["difference"], row["pairs"], row["p"]) == pytest.approx((2.1, 3, ttest_rel(BIHALF, SIGN).pvalue))
    # The paper's Table 2.
    assert [(row["published"], row["published_std"]) for row in rows] == [(77.86, 0.69), (78.32, 0.25), (79.25, 0.28)]


@pytest.mark.parametrize(
    ("model", "data", "method"),
    [("conv2", "digits", "sign"), ("conv2", "cifar100", "sign"), ("conv2", "cifar10", "dense")],
)
def test_other_data_or_methods_have_nothing_published(
    model: str, data: str, method: str, comparison: Comparison
) -> None:
    (row,) = method_comparison_rows(comparison(model, data, **{method: [50.0, 51.0]}))
    assert isnan(row["published"]) and isnan(row["published_std"])


def test_tuned_values_are_those_of_each_arm(trials: Trials) -> None:
    frame = pd.DataFrame([*trials("sign", 0.0, SIGN, lr=0.3), *trials("bihalf", 0.0, BIHALF, weight_decay=5e-4)])
    assert [(row["lr"], row["weight_decay"]) for row in method_comparison_rows(frame)] == [(0.3, 1e-4), (0.1, 5e-4)]


def test_the_curves_are_accuracies_by_seed(comparison: Comparison) -> None:
    assert method_comparison_curves(comparison(sign=[77.0, None, 78.0], bihalf=[79.0])) == {
        "test_top1/conv2/sign": [(0, 77.0), (2, 78.0)],
        "test_top1/conv2/bihalf": [(0, 79.0)],
    }
    assert method_comparison_curves(comparison(sign=[None])) == {}


def bars(figure: Figure) -> list[ErrorbarContainer]:
    return [drawn for drawn in figure.axes[0].containers if isinstance(drawn, ErrorbarContainer)]


def test_the_figure_has_labels_with_units_and_a_legend(comparison: Comparison) -> None:
    figure = draw_method_comparison(comparison(sign=SIGN, irnet=IRNET, bihalf=BIHALF))
    (panel,) = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("network", "test top-1 accuracy (%)")
    assert panel.get_title() == "cifar10"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sign", "irnet", "bihalf", "published"]
    assert "3 trials" in figure.get_supxlabel()


def test_networks_are_groups_of_means_with_deviations(comparison: Comparison) -> None:
    frame = pd.concat([comparison(m, "digits", sign=SIGN, bihalf=BIHALF) for m in ("conv2", "conv4")])
    figure = draw_method_comparison(frame)
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["conv2", "conv4"]
    found = {drawn.get_label(): drawn for drawn in bars(figure)}
    for method, values in (("sign", SIGN), ("bihalf", BIHALF)):
        means = found[method].lines[0].get_xydata()
        assert means[:, 1] == pytest.approx([np.mean(values)] * 2)
        assert np.round(means[:, 0]).tolist() == [0, 1]
        assert to_hex(found[method].lines[0].get_color()) == OWN_COLOUR[method].lower()
        for segment in found[method].lines[2][0].get_segments():
            assert np.ptp(segment[:, 1]) == pytest.approx(2 * np.std(values, ddof=1))
    trials = np.concatenate([drawn.get_offsets()[:, 1] for drawn in panel.collections if len(drawn.get_offsets()) == 6])
    assert sorted(trials) == sorted([*SIGN, *BIHALF] * 2)


def test_published_figures_are_hollow_and_only_where_there_are_any(comparison: Comparison) -> None:
    def hollow(figure: Figure) -> list[float]:
        marks = [drawn.lines[0] for drawn in bars(figure)]
        values = [mark.get_ydata() for mark in marks if mark.get_markerfacecolor() == "none"]
        return [float(value) for value in np.concatenate(values) if not np.isnan(value)]

    assert hollow(draw_method_comparison(comparison(sign=SIGN, bihalf=BIHALF))) == [77.86, 79.25]
    figure = draw_method_comparison(comparison("conv2", "digits", sign=SIGN, bihalf=BIHALF))
    assert hollow(figure) == []
    assert "published" not in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("accuracies", [{"sign": [77.0]}, {"sign": [None], "bihalf": [79.0, None]}, {"sign": [None]}])
def test_single_and_diverged_trials_are_drawn_too(
    accuracies: dict[str, list[float | None]], comparison: Comparison, tmp_path: Path
) -> None:
    figure = draw_method_comparison(comparison(**accuracies))
    assert all(path.exists() for path in save_figure(figure, tmp_path / "figure"))


def test_binary_networks_are_compared_with_table_3_and_others_can_be_listed(comparison: Comparison) -> None:
    frame = comparison("resnet18", "imagenet:/data", sign=[50.0], bihalf=[51.0]).assign(activations="clip", width=1.0)
    rows = method_comparison_rows(frame)
    # The paper's Table 3.
    assert [(row["model"], row["published"], row["published_top5"]) for row in rows] == [
        ("resnet18 1/1", 59.98, 82.47),
        ("resnet18 1/1", 60.40, 82.86),
    ]
    others = {row["method"]: row["published"] for row in published_elsewhere(rows)}
    assert (others["IR-Net"], others["full precision"], others["RBNN"]) == (58.1, 69.3, 59.9)
    assert "sign" not in others
    for other in (frame.assign(activations="real"), frame.assign(width=0.5)):
        assert all(isnan(row["published"]) for row in method_comparison_rows(other))

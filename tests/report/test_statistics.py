from __future__ import annotations

from collections.abc import Callable
from math import isnan, sqrt
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel, wilcoxon

from mpt_bihalf.report.statistics import compare, diverged_texts, p_text, paired, reference_of

Record = dict[str, Any]
Trials = Callable[..., list[Record]]

pytestmark = pytest.mark.filterwarnings("error")


def row_of(table: pd.DataFrame, method: str) -> Record:
    (row,) = table[table["method"] == method].to_dict("records")
    return row


def side(*values: float | None, first_seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"seed": range(first_seed, first_seed + len(values)), "test_top1": values})


def test_mean_deviation_and_range_are_those_of_the_sample(trials: Trials) -> None:
    row = row_of(compare(trials("sign", 0.0, [64.0, 66.0, 71.0]), "sign"), "sign")
    assert (row["model"], row["data"], row["trials"], row["diverged"]) == ("conv2", "digits", 3, 0)
    assert row["mean"] == pytest.approx(67)
    assert row["std"] == pytest.approx(sqrt((9 + 1 + 16) / 2))
    assert (row["min"], row["max"]) == (64, 71)


def test_three_pairs_by_hand() -> None:
    # Differences 1, 2, 3: t = 2 / (1 / sqrt 3), and with two degrees of freedom p = 1 - t / sqrt(t^2 + 2).
    found = paired(side(51.0, 52.0, 57.0), side(50.0, 50.0, 54.0))
    t = 2 * sqrt(3)
    assert found["difference"] == pytest.approx(2)
    assert found["pairs"] == 3
    assert found["p"] == pytest.approx(1 - t / sqrt(t**2 + 2))
    assert found["p_ranks"] == pytest.approx(2 / 2**3)


@pytest.mark.parametrize(("pairs", "p"), [(5, 2 / 2**5), (6, 2 / 2**6), (9, 2 / 2**9)])
def test_pairs_that_all_differ_in_one_direction_are_two_of_all_signs(pairs: int, p: float) -> None:
    here = [50 + 1.5**i for i in range(pairs)]
    assert paired(side(*here), side(*[50.0] * pairs))["p_ranks"] == pytest.approx(p)


@pytest.mark.parametrize("count", [2, 5, 30, 100])
def test_both_tests_are_those_of_scipy_whatever_the_order_of_the_records(trials: Trials, count: int) -> None:
    random = np.random.default_rng(count)
    here, there = random.normal(80, 1, count), random.normal(79.5, 1, count)
    records = [*trials("bihalf", 0.0, here.tolist()), *trials("sign", 0.0, there.tolist())]
    row = row_of(compare([records[i] for i in random.permutation(2 * count)], "sign"), "bihalf")
    assert row["pairs"] == count
    assert row["difference"] == pytest.approx((here - there).mean())
    assert row["p"] == pytest.approx(ttest_rel(here, there).pvalue)
    assert row["p_ranks"] == pytest.approx(wilcoxon(here, there).pvalue)


def test_accuracies_with_ties_are_tested_as_scipy_does() -> None:
    hits = np.array([[346, 350, 351, 347, 349, 346, 352], [344, 350, 349, 345, 350, 343, 349]])
    here, there = 100 * hits / 360  # ties and a pair without a difference
    found = paired(side(*here), side(*there))
    assert found["p"] == pytest.approx(ttest_rel(*hits).pvalue)
    assert found["p_ranks"] == pytest.approx(wilcoxon(*hits).pvalue)


def test_exchanging_the_sides_turns_the_difference_and_keeps_p() -> None:
    one, other = side(3.0, 5.0, 4.0), side(1.0, 4.0, 2.5)
    there, back = paired(one, other), paired(other, one)
    assert back["difference"] == pytest.approx(-there["difference"])
    assert (back["p"], back["p_ranks"]) == pytest.approx((there["p"], there["p_ranks"]))


def test_one_pair_has_a_difference_and_no_p(trials: Trials) -> None:
    row = row_of(compare([*trials("sign", 0.0, [60.0]), *trials("bihalf", 0.0, [61.5])], "sign"), "bihalf")
    assert (row["difference"], row["pairs"], row["trials"]) == (1.5, 1, 1)
    assert isnan(row["p"]) and isnan(row["p_ranks"]) and isnan(row["std"])


def test_equal_values_have_no_p() -> None:
    found = paired(side(60.0, 61.0, 62.0), side(60.0, 61.0, 62.0))
    assert (found["difference"], found["pairs"]) == (0, 3)
    assert isnan(found["p"]) and isnan(found["p_ranks"])


@pytest.mark.parametrize("step", [1.0, 0.1, 100 / 360])  # the last two differ by rounding
def test_pairs_that_all_differ_alike_leave_the_t_test_nothing_to_judge(step: float) -> None:
    values = np.array([60.1, 61.2, 62.7, 63.3, 64.9, 65.4])
    found = paired(side(*(values + step)), side(*values))
    assert found["difference"] == pytest.approx(step)
    assert isnan(found["p"])
    assert found["p_ranks"] == pytest.approx(wilcoxon([1] * 6).pvalue)


def test_diverged_runs_are_counted_and_their_pairs_left_out(trials: Trials) -> None:
    records = [*trials("sign", 0.0, [60.0, None, 62.0, 63.0]), *trials("bihalf", 0.0, [61.0, 90.0, 65.0, None])]
    table = compare(records, "sign")
    row = row_of(table, "bihalf")
    assert (row["trials"], row["diverged"], row["mean"]) == (3, 1, 72)
    assert (row["pairs"], row["difference"]) == (2, 2)
    assert row["p"] == pytest.approx(ttest_rel([61, 65], [60, 62]).pvalue)
    assert row_of(table, "sign")["diverged"] == 1


def test_where_all_diverged_there_is_nothing_to_tell(trials: Trials) -> None:
    for records in (
        [*trials("sign", 0.0, [None, None]), *trials("bihalf", 0.0, [None, None])],
        [*trials("sign", 0.0, [None, None]), *trials("bihalf", 0.0, [60.0, 61.0])],
    ):
        row = row_of(compare(records, "sign"), "bihalf")
        assert row["pairs"] == 0
        assert isnan(row["difference"]) and isnan(row["p"])
        assert row_of(compare(records, "sign"), "sign")["diverged"] == 2


def test_seeds_that_one_side_alone_has_are_left_out() -> None:
    found = paired(side(70.0, 61.0, 64.0), side(60.0, 62.0, 10.0, first_seed=1))
    assert (found["difference"], found["pairs"]) == (1.5, 2)
    assert found["p"] == pytest.approx(ttest_rel([61, 64], [60, 62]).pvalue)
    assert paired(side(70.0), side(60.0, first_seed=1))["pairs"] == 0


def test_a_seed_that_stands_twice_is_refused(trials: Trials) -> None:
    records = [r for lr in (0.1, 0.2) for r in trials("bihalf", 0.0, [60.0, 61.0], lr=lr)]
    with pytest.raises(ValueError, match="seed 0 stands twice among the runs to be paired"):
        compare([*records, *trials("sign", 0.0, [50.0, 51.0])], "sign")
    told = compare([*records, *trials("sign", 0.0, [50.0, 51.0])], "sign", by=("model", "lr"))
    assert len(told) == 3


def test_the_reference_is_not_compared_with_itself(trials: Trials) -> None:
    row = row_of(compare(trials("sign", 0.0, [60.0, 61.0]), "sign"), "sign")
    assert row["pairs"] == 0
    assert isnan(row["difference"]) and isnan(row["p"]) and isnan(row["p_ranks"])


def test_each_setting_has_its_own_reference(trials: Trials) -> None:
    records = [
        *trials("sign", 0.0, [60.0, 61.0], model="conv2"),
        *trials("bihalf", 0.0, [62.0, 64.0], model="conv2"),
        *trials("sign", 0.0, [70.0, 71.0], model="conv4"),
        *trials("bihalf", 0.0, [70.0, 70.0], model="conv4"),
    ]
    table = compare(records, "sign")
    found = table[table["method"] == "bihalf"].set_index("model")["difference"]
    assert found.to_dict() == {"conv2": 2.5, "conv4": -0.5}
    assert compare(records[:4], "sign", by=("data",))["data"].tolist() == ["digits", "digits"]


def test_any_figure_can_be_compared_and_the_records_stay_as_they_are(trials: Trials) -> None:
    records = pd.DataFrame(
        [
            {**record, "test_loss": loss}
            for method, losses in (("sign", [0.5, 0.6]), ("bihalf", [0.4, 0.3]))
            for record, loss in zip(trials(method, 0.0, [60.0, 61.0]), losses, strict=True)
        ]
    )
    before = records.copy()
    row = row_of(compare(records, "sign", figure="test_loss"), "bihalf")
    assert (row["mean"], row["difference"]) == pytest.approx((0.35, -0.2))
    assert compare(records, "sign", figure="none")["trials"].tolist() == [0, 0]
    pd.testing.assert_frame_equal(records, before)


def test_the_reference_is_the_preferred_method_or_the_first() -> None:
    records = pd.DataFrame({"method": ["irnet", "bihalf", "sign"]})
    assert reference_of(records) == "sign"
    assert reference_of(records[:2]) == "irnet"
    assert reference_of(records, "bihalf") == "bihalf"


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0321, "p = 0.032"),
        (0.5, "p = 0.5"),
        (0.0009, "p < 0.001"),
        (0.001, "p = 0.001"),
        (0.0496, "p = 0.0496"),
        (0.0504, "p = 0.0504"),
        (float("nan"), "no p"),
    ],
)
def test_p_as_in_a_sentence(p: float, text: str) -> None:
    assert p_text(p) == text


def test_methods_that_diverged_are_told_once(trials: Trials) -> None:
    table = compare([*trials("sign", 0.0, [60.0, None, None]), *trials("bihalf", 0.0, [61.0, 62.0, 63.0])], "sign")
    assert diverged_texts(pd.concat([table, table])) == ["2 of 3 trainings of sign diverged"]

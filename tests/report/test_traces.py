from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from scipy.stats import ttest_rel

from mpt_bihalf.report.traces import (
    compare_methods,
    draw_places,
    finished_traces,
    mean_curves,
    summarise_runs,
    tell_differences,
    tell_places,
)

Record = dict[str, Any]


def record(method: str, seed: int, finished: bool = True, model: str = "conv2") -> Record:
    result = {"test_top1": 90.0} if finished else {}
    return {"model": model, "data": "digits", "method": method, "seed": seed, **result}


def traced(*records: Record, values: list[float]) -> pd.DataFrame:
    """A trace with a row for each record and value."""
    names = ("model", "data", "method", "seed")
    rows = [
        {**{name: r[name] for name in names}, "step": step, "other": 0, "value": value}
        for r in records
        for step, value in enumerate(values, 1)
    ]
    return pd.DataFrame(rows)


def runs_of(values: dict[str, list[float | None]], model: str = "conv2") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"model": model, "data": "digits", "method": method, "seed": seed, "value": value}
            for method, trials in values.items()
            for seed, value in enumerate(trials)
        ]
    ).astype({"value": float})


def rows_of(values: dict[str, list[float | None]], model: str = "conv2") -> list[Record]:
    return compare_methods(runs_of(values, model), "value", lambda trials: {"count": len(trials)})


def test_traces_of_runs_that_did_not_finish_or_are_not_asked_for_are_left_out() -> None:
    wanted = [record("sign", 0), record("sign", 1, finished=False)]
    trace = traced(*wanted, record("sign", 2), record("bihalf", 0), values=[1.0, 2.0])
    found = finished_traces(wanted, trace, ["step", "value"])
    assert list(found.columns) == ["model", "data", "method", "seed", "step", "value"]
    assert found[["method", "seed", "step", "value"]].to_numpy().tolist() == [["sign", 0, 1, 1.0], ["sign", 0, 2, 2.0]]


def test_without_a_finished_run_or_a_trace_nothing_is_left() -> None:
    lost = [record("sign", 0, finished=False)]
    for records, trace in (
        (lost, traced(*lost, values=[1.0])),
        (lost, pd.DataFrame()),
        ([record("sign", 0)], pd.DataFrame()),
    ):
        found = finished_traces(records, trace, ["step"])
        assert found.empty
        assert list(found.columns) == ["model", "data", "method", "seed", "step"]


def test_a_run_that_diverged_has_a_summary_of_nan() -> None:
    records = [record("sign", 0), record("sign", 1, finished=False)]
    steps = finished_traces(records, traced(*records, values=[3.0, 5.0]), ["step", "value"])
    runs = summarise_runs(records, steps, lambda part: {"highest": part["value"].max()}, ["highest"])
    assert runs["highest"].tolist() == pytest.approx([5.0, float("nan")], nan_ok=True)
    none = summarise_runs(records, steps[:0], lambda part: {}, ["highest"])
    assert none["highest"].isna().tolist() == [True, True]


def test_methods_are_compared_with_bihalf_over_equal_seeds() -> None:
    sign, bihalf = [1.0, 2.0, 4.0], [2.0, 3.5, 4.5]
    rows = {row["method"]: row for row in rows_of({"sign": sign, "bihalf": bihalf, "irnet": [1.0, None, None]})}
    assert rows["sign"]["value"] == pytest.approx(7 / 3)
    assert rows["sign"]["value_std"] == pytest.approx(pd.Series(sign).std())
    assert rows["sign"]["difference"] == pytest.approx(-1.0)
    assert rows["sign"]["p"] == pytest.approx(ttest_rel(sign, bihalf).pvalue)
    assert pd.isna(rows["bihalf"]["difference"]) and pd.isna(rows["bihalf"]["p"])
    assert (rows["irnet"]["trials"], rows["irnet"]["diverged"], rows["irnet"]["count"]) == (1, 2, 3)


def test_each_network_has_its_own_rows() -> None:
    runs = pd.concat([runs_of({"sign": [1.0]}), runs_of({"sign": [2.0]}, "conv4")])
    rows = compare_methods(runs, "value", lambda trials: {"count": len(trials)})
    assert [(row["model"], row["value"], row["count"]) for row in rows] == [("conv2", 1.0, 1), ("conv4", 2.0, 1)]


def test_without_bihalf_the_first_method_is_the_reference() -> None:
    for methods, reference in ((["sign", "bihalf"], "bihalf"), (["irnet", "sign"], "irnet")):
        rows = rows_of({method: [1.0] for method in methods})
        assert [row["method"] for row in rows if pd.isna(row["difference"])] == [reference]


def test_differences_are_told_from_the_highest_down() -> None:
    rows = rows_of({"sign": [1.0, 2.1, 3.0], "bihalf": [4.0, 5.0, 6.0], "irnet": [9.0, 4.0, 6.0]})
    assert tell_differences(rows, "value", 2) == (
        "irnet 6.33 (1.33 more than bihalf, p = 0.55, not told apart), bihalf 5.00, "
        "sign 2.03 (2.97 less than bihalf, p < 0.001)"
    )


def test_a_difference_that_is_rounded_to_nothing_is_none() -> None:
    rows = rows_of({"bihalf": [1.0, 2.0], "sign": [1.01, 1.98]})
    assert tell_differences(rows, "value", 1).endswith("sign 1.5 (as bihalf, p = 0.8, not told apart)")


def test_one_trial_or_one_method_has_no_p() -> None:
    assert tell_differences(rows_of({"bihalf": [1.0], "sign": [1500.0]}), "value", 1) == (
        "sign 1,500.0 (1,499.0 more than bihalf), bihalf 1.0"
    )
    assert tell_differences(rows_of({"irnet": [1.0, 2.0]}), "value", 1) == "irnet 1.5"


def tell(rows: list[Record]) -> str:
    return " ".join(row["method"] for row in rows)


def test_what_limits_a_finding_is_told() -> None:
    assert tell_places(rows_of({"sign": [1.0, 2.0], "bihalf": [1.0, 2.0]}), tell) == "conv2 on digits: sign bihalf"
    assert tell_places(rows_of({"sign": [1.0]}), tell) == (
        "conv2 on digits: sign; one trial is too little to tell this from chance"
    )
    assert tell_places(rows_of({"sign": [None, None], "irnet": [1.0, None], "bihalf": [1.0, 2.0]}), tell) == (
        "conv2 on digits: irnet bihalf; 2 of 2 trainings of sign diverged; 1 of 2 trainings of irnet diverged"
    )
    assert tell_places(rows_of({"sign": [None]}), tell) == (
        "conv2 on digits: no run finished; 1 of 1 trainings of sign diverged"
    )


def test_each_network_is_told_of_in_turn() -> None:
    rows = rows_of({"sign": [1.0, 2.0]}) + rows_of({"bihalf": [1.0, 2.0]}, "conv4")
    assert tell_places(rows, tell) == "conv2 on digits: sign; conv4 on digits: bihalf"


def test_a_figure_has_a_row_of_panels_for_each_network() -> None:
    steps = pd.concat([runs_of({"sign": [1.0]}), runs_of({"sign": [2.0]}, "conv4")])
    figure, places = draw_places(steps, 2, 8, 4)
    assert [(name, part["value"].tolist(), len(panels)) for part, panels, name in places] == [
        ("conv2, digits", [1.0], 2),
        ("conv4, digits", [2.0], 2),
    ]
    assert (figure.get_size_inches() == (8, 8)).all()


def test_a_figure_of_nothing_says_so() -> None:
    figure, places = draw_places(runs_of({"sign": [1.0]})[:0], 2, 8, 4)
    assert places == []
    assert [text.get_text() for text in figure.texts] == ["no run finished"]


def test_curves_are_means_over_the_trials_by_step() -> None:
    steps = traced(record("sign", 0), record("sign", 1), values=[1.0, 2.0]).assign(other=[4, 5, 6, 7])
    assert mean_curves(steps, ["value", "other"]) == {
        "value/conv2-digits-sign": [(1, 1.0), (2, 2.0)],
        "other/conv2-digits-sign": [(1, 5.0), (2, 6.0)],
    }

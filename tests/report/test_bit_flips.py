from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mpt_bihalf.report.bit_flips import (
    CLAIM,
    bit_flips_curves,
    bit_flips_finding,
    bit_flips_rows,
    bit_flips_runs,
    bit_flips_steps,
    draw_bit_flips,
)
from mpt_bihalf.report.figures import save_figure

Record = dict[str, Any]
Trials = Callable[..., list[Record]]
Measured = Callable[..., tuple[list[Record], pd.DataFrame]]
Flips = list[tuple[int, int]]

STEPS = (2, 4, 5)
LAYERS = ("0", "2", "6")


def trace_of(method: str, seed: int, flips: Flips, model: str = "conv2") -> pd.DataFrame:
    """The trace of a run with these flips to +1 and to -1 before each of `STEPS` in layer 2, one more in the others."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "data": "digits",
                "method": method,
                "seed": seed,
                "step": step,
                "layer": layer,
                "connections": 576,
                "first_filter_to_positive": float(positive + (layer != "2")),
                "first_filter_to_negative": float(negative),
            }
            for step, (positive, negative) in zip(STEPS, flips, strict=True)
            for layer in LAYERS
        ]
    )


def rows_of(records: list[Record], trace: pd.DataFrame, layer: str = "") -> list[Record]:
    return bit_flips_rows(bit_flips_runs(records, bit_flips_steps(records, trace, layer)))


@pytest.fixture
def paper(measured: Measured) -> tuple[list[Record], pd.DataFrame]:
    """As the paper says: bihalf is even, the others are not."""
    return measured(
        {
            "sign": [[(5, 1), (3, 0), (0, 2)], [(0, 4), (1, 5), (1, 1)]],
            "irnet": [[(4, 4), (2, 3), (1, 0)], [(3, 4), (2, 0), (1, 2)]],
            "bihalf": [[(6, 6), (4, 4), (1, 1)], [(5, 5), (5, 5), (0, 0)]],
        },
    )


@pytest.fixture
def reverse(measured: Measured) -> tuple[list[Record], pd.DataFrame]:
    even: Flips = [(9, 9), (3, 3), (1, 1)]
    return measured(
        {"sign": [even, [(8, 8), (4, 4), (0, 0)]], "bihalf": [[(0, 3), (0, 2), (1, 0)], [(1, 0), (1, 0), (1, 0)]]},
    )


def test_steps_have_the_flips_so_far_and_their_difference(paper: tuple[list[Record], pd.DataFrame]) -> None:
    steps = bit_flips_steps(*paper)
    assert set(steps["layer"]) == {"2"}
    first = steps[(steps["method"] == "sign") & (steps["seed"] == 0)]
    assert first["iterations"].tolist() == [2, 2, 1]
    assert first["to_positive_sum"].tolist() == [5, 8, 8]
    assert first["to_negative_sum"].tolist() == [1, 1, 3]
    assert first["imbalance"].tolist() == [4, 7, 5]
    second = steps[(steps["method"] == "sign") & (steps["seed"] == 1)]
    assert second["imbalance"].tolist() == [-4, -8, -8]


def test_another_layer_can_be_looked_at(paper: tuple[list[Record], pd.DataFrame]) -> None:
    steps = bit_flips_steps(*paper, "6")
    assert set(steps["layer"]) == {"6"}
    assert steps[steps["method"] == "bihalf"]["imbalance"].tolist() == [1, 2, 3] * 2


def test_each_network_has_its_own_second_layer(trials: Trials) -> None:
    flips: Flips = [(1, 1)] * 3
    other = trace_of("sign", 0, flips, "conv4").replace({"layer": {"0": "2", "2": "0"}})
    records = [*trials("sign", 0.0, [90.0]), *trials("sign", 0.0, [90.0], model="conv4")]
    steps = bit_flips_steps(records, pd.concat([trace_of("sign", 0, flips), other], ignore_index=True))
    assert dict(zip(steps["model"], steps["layer"], strict=True)) == {"conv2": "2", "conv4": "0"}
    assert steps["to_positive_sum"].tolist() == [1, 2, 3] * 2


def test_a_row_has_the_figures_of_its_method(paper: tuple[list[Record], pd.DataFrame]) -> None:
    rows = rows_of(*paper)
    assert [row["method"] for row in rows] == ["sign", "irnet", "bihalf"]
    expected = {"flips": 11.5, "to_positive": 5.0, "to_negative": 6.5, "imbalance": 6.5, "most_imbalance": 8}
    expected |= {"weights": 576, "trials": 2, "diverged": 0, "difference": -9.5}
    assert {name: rows[0][name] for name in expected} == pytest.approx(expected)
    assert rows[0]["layer"] == "2"
    assert rows[2]["imbalance"] == rows[2]["most_imbalance"] == 0


def test_the_finding_as_the_paper_claims(paper: tuple[list[Record], pd.DataFrame]) -> None:
    assert bit_flips_finding(rows_of(*paper)) == (
        "conv2 on digits: first filter of layer 2 (576 weights): bihalf flips as often to +1 as to -1 at every traced "
        "step; the difference of the accumulated flips reaches 1 in irnet, 8 in sign; flips in a training: "
        "bihalf 21.0, irnet 13.0 (8.0 less than bihalf), sign 11.5 (9.5 less than bihalf, p = 0.1, not told apart)"
    )


def test_the_finding_is_reversed_with_the_records(reverse: tuple[list[Record], pd.DataFrame]) -> None:
    finding = bit_flips_finding(rows_of(*reverse))
    assert "sign flips as often to +1 as to -1 at every traced step" in finding
    assert "the difference of the accumulated flips reaches 5 in bihalf" in finding
    assert "flips in a training: sign 25.0 (20.5 more than bihalf" in finding


def test_flips_that_are_even_only_in_the_end_are_not_even(measured: Measured) -> None:
    finding = bit_flips_finding(rows_of(*measured({"bihalf": [[(3, 0), (0, 0), (0, 3)]] * 2})))
    assert "as often" not in finding
    assert "reaches 3 in bihalf" in finding


def test_a_method_that_never_flips_is_not_called_even(measured: Measured) -> None:
    still: Flips = [(0, 0)] * 3
    finding = bit_flips_finding(rows_of(*measured({"sign": [still] * 2, "bihalf": [[(1, 1)] * 3] * 2})))
    assert "bihalf flips as often" in finding
    assert "sign 0.0 (6.0 less than bihalf)" in finding
    assert "reaches" not in finding


def test_several_even_methods_are_told_together(measured: Measured) -> None:
    even: Flips = [(1, 1)] * 3
    finding = bit_flips_finding(rows_of(*measured({"irnet": [even] * 2, "bihalf": [even] * 2})))
    assert "irnet and bihalf flip as often to +1" in finding


def test_too_little_to_tell_is_told(measured: Measured, trials: Trials) -> None:
    one = bit_flips_finding(rows_of(*measured({"sign": [[(2, 0)] * 3]})))
    assert one.endswith("flips in a training: sign 6.0; one trial is too little to tell this from chance")
    lost = trials("sign", 0.0, [None, None])
    assert bit_flips_finding(rows_of(lost, pd.DataFrame())) == (
        "conv2 on digits: no run finished; 2 of 2 trainings of sign diverged"
    )


def test_a_method_of_which_all_diverged_is_left_out_and_told(
    paper: tuple[list[Record], pd.DataFrame], trials: Trials
) -> None:
    records, trace = paper
    rows = rows_of([*records, *trials("bop", 0.0, [None])], trace)
    assert (rows[3]["trials"], rows[3]["diverged"]) == (0, 1)
    finding = bit_flips_finding(rows)
    assert "bop" not in finding.removesuffix("; 1 of 1 trainings of bop diverged")


def test_the_figure_has_labels_units_and_legends(paper: tuple[list[Record], pd.DataFrame], tmp_path: Path) -> None:
    figure = draw_bit_flips(bit_flips_steps(*paper))
    rates, sums, differences = figure.axes
    assert {panel.get_xlabel() for panel in figure.axes} == {"training step"}
    assert rates.get_ylabel() == "flips per iteration (to +1 above 0, to -1 below)"
    assert sums.get_ylabel() == "flips so far"
    assert differences.get_ylabel() == "flips to +1 less flips to -1, so far"
    assert rates.get_title() == "conv2, digits: first filter of layer 2 (576 weights)"
    methods = ["sign", "irnet", "bihalf"]
    for panel, names in ((rates, methods), (sums, [*methods, "to +1", "to -1"]), (differences, methods)):
        assert [text.get_text() for text in panel.get_legend().get_texts()] == names
    assert all(path.exists() for path in save_figure(figure, tmp_path / "figure"))


def test_lines_are_the_flips_of_the_first_trial_and_the_differences_of_all(
    paper: tuple[list[Record], pd.DataFrame],
) -> None:
    rates, sums, differences = draw_bit_flips(bit_flips_steps(*paper)).axes
    positive, negative = (line.get_ydata() for line in rates.lines[:2])
    assert list(positive) == pytest.approx([2.5, 1.5, 0])
    assert list(negative) == pytest.approx([-0.5, 0, -2])
    assert [list(line.get_ydata()) for line in sums.lines[:2]] == [[5, 8, 8], [1, 1, 3]]
    assert [list(line.get_ydata()) for line in differences.lines[:2]] == [[4, 7, 5], [-4, -8, -8]]
    assert list(differences.lines[4].get_ydata()) == [0, 0, 0]


def test_rates_of_many_steps_are_moving_means_per_iteration(measured: Measured) -> None:
    steps = bit_flips_steps(*measured({"sign": [[(2, 0), (4, 0), (6, 0)]]}))
    many = pd.concat([steps.iloc[[0]]] * 40 + [steps.iloc[[1]]] * 40).assign(step=range(1, 81))
    rates = draw_bit_flips(many).axes[0].lines[0].get_ydata()
    assert rates[10] == pytest.approx(1) and rates[70] == pytest.approx(2)
    assert rates[39] > rates[37]


def test_nothing_finished_is_drawn_too(trials: Trials, tmp_path: Path) -> None:
    steps = bit_flips_steps(trials("sign", 0.0, [None]), pd.DataFrame())
    assert all(path.exists() for path in save_figure(draw_bit_flips(steps), tmp_path / "figure"))
    assert bit_flips_curves(steps) == {}


def test_tensorboard_gets_the_means_over_the_trials(paper: tuple[list[Record], pd.DataFrame]) -> None:
    curves = bit_flips_curves(bit_flips_steps(*paper))
    assert curves["to_positive_sum/conv2-digits-sign"] == [(2, 2.5), (4, 4.5), (5, 5.0)]
    assert curves["imbalance/conv2-digits-bihalf"] == [(2, 0), (4, 0), (5, 0)]


def test_the_claim_is_one_line() -> None:
    assert "\n" not in CLAIM and "zero" in CLAIM

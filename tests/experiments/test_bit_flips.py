from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mpt_bihalf.experiments import bit_flips
from mpt_bihalf.parametrization import binary_layers
from mpt_bihalf.report.figures import save_figure
from mpt_bihalf.training import Run
from mpt_bihalf.training.build import build_network
from mpt_bihalf.weights import binary_weights

OPTIONS = ["--width", "0.25", "--trials", "1"]
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
    return bit_flips.rows_of(bit_flips.per_run(records, bit_flips.per_step(records, trace, layer)))


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
    steps = bit_flips.per_step(*paper)
    assert set(steps["layer"]) == {"2"}
    first = steps[(steps["method"] == "sign") & (steps["seed"] == 0)]
    assert first["iterations"].tolist() == [2, 2, 1]
    assert first["to_positive_sum"].tolist() == [5, 8, 8]
    assert first["to_negative_sum"].tolist() == [1, 1, 3]
    assert first["imbalance"].tolist() == [4, 7, 5]
    second = steps[(steps["method"] == "sign") & (steps["seed"] == 1)]
    assert second["imbalance"].tolist() == [-4, -8, -8]


def test_another_layer_can_be_looked_at(paper: tuple[list[Record], pd.DataFrame]) -> None:
    steps = bit_flips.per_step(*paper, "6")
    assert set(steps["layer"]) == {"6"}
    assert steps[steps["method"] == "bihalf"]["imbalance"].tolist() == [1, 2, 3] * 2


def test_each_network_has_its_own_second_layer(trials: Trials) -> None:
    flips: Flips = [(1, 1)] * 3
    other = trace_of("sign", 0, flips, "conv4").replace({"layer": {"0": "2", "2": "0"}})
    records = [*trials("sign", 0.0, [90.0]), *trials("sign", 0.0, [90.0], model="conv4")]
    steps = bit_flips.per_step(records, pd.concat([trace_of("sign", 0, flips), other], ignore_index=True))
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
    finding = bit_flips.finding_of(rows_of(*paper))
    assert "bihalf flips as often to +1 as to -1 at every traced step" in finding
    assert "reaches 1 in irnet, 8 in sign" in finding
    assert "bihalf 21.0, irnet 13.0 (8.0 less than bihalf), sign 11.5 (9.5 less than bihalf, p = 0.1" in finding


def test_the_finding_is_reversed_with_the_records(reverse: tuple[list[Record], pd.DataFrame]) -> None:
    finding = bit_flips.finding_of(rows_of(*reverse))
    assert "sign flips as often to +1 as to -1 at every traced step" in finding
    assert "the difference of the accumulated flips reaches 5 in bihalf" in finding
    assert "flips in a training: sign 25.0 (20.5 more than bihalf" in finding


def test_flips_that_are_even_only_in_the_end_are_not_even(measured: Measured) -> None:
    finding = bit_flips.finding_of(rows_of(*measured({"bihalf": [[(3, 0), (0, 0), (0, 3)]] * 2})))
    assert "as often" not in finding
    assert "reaches 3 in bihalf" in finding


def test_a_method_that_never_flips_is_not_called_even(measured: Measured) -> None:
    still: Flips = [(0, 0)] * 3
    finding = bit_flips.finding_of(rows_of(*measured({"sign": [still] * 2, "bihalf": [[(1, 1)] * 3] * 2})))
    assert "bihalf flips as often" in finding
    assert "sign 0.0 (6.0 less than bihalf)" in finding
    assert "reaches" not in finding


def test_too_little_to_tell_is_told(measured: Measured, trials: Trials) -> None:
    one = bit_flips.finding_of(rows_of(*measured({"sign": [[(2, 0)] * 3]})))
    assert one.endswith("flips in a training: sign 6.0; one trial is too little to tell this from chance")
    lost = trials("sign", 0.0, [None, None])
    assert bit_flips.finding_of(rows_of(lost, pd.DataFrame())) == (
        "conv2 on digits: no run finished; 2 of 2 trainings of sign diverged"
    )


def test_a_method_of_which_all_diverged_is_left_out_and_told(
    paper: tuple[list[Record], pd.DataFrame], trials: Trials
) -> None:
    records, trace = paper
    rows = rows_of([*records, *trials("bop", 0.0, [None])], trace)
    assert (rows[3]["trials"], rows[3]["diverged"]) == (0, 1)
    finding = bit_flips.finding_of(rows)
    assert "bop" not in finding.removesuffix("; 1 of 1 trainings of bop diverged")


def test_lines_are_the_flips_of_the_first_trial_and_the_differences_of_all(
    paper: tuple[list[Record], pd.DataFrame],
) -> None:
    rates, sums, differences = bit_flips.draw(bit_flips.per_step(*paper)).axes
    positive, negative = (line.get_ydata() for line in rates.lines[:2])
    assert list(positive) == pytest.approx([2.5, 1.5, 0])
    assert list(negative) == pytest.approx([-0.5, 0, -2])
    assert [list(line.get_ydata()) for line in sums.lines[:2]] == [[5, 8, 8], [1, 1, 3]]
    assert [list(line.get_ydata()) for line in differences.lines[:2]] == [[4, 7, 5], [-4, -8, -8]]
    assert list(differences.lines[4].get_ydata()) == [0, 0, 0]


def test_rates_of_many_steps_are_moving_means_per_iteration(measured: Measured) -> None:
    steps = bit_flips.per_step(*measured({"sign": [[(2, 0), (4, 0), (6, 0)]]}))
    many = pd.concat([steps.iloc[[0]]] * 40 + [steps.iloc[[1]]] * 40).assign(step=range(1, 81))
    rates = bit_flips.draw(many).axes[0].lines[0].get_ydata()
    assert rates[10] == pytest.approx(1) and rates[70] == pytest.approx(2)
    assert rates[39] > rates[37]


def test_nothing_finished_is_drawn_too(trials: Trials, tmp_path: Path) -> None:
    steps = bit_flips.per_step(trials("sign", 0.0, [None]), pd.DataFrame())
    assert all(path.exists() for path in save_figure(bit_flips.draw(steps), tmp_path / "figure"))
    assert bit_flips.curves_of(steps) == {}


def test_tensorboard_gets_the_means_over_the_trials(paper: tuple[list[Record], pd.DataFrame]) -> None:
    curves = bit_flips.curves_of(bit_flips.per_step(*paper))
    assert curves["to_positive_sum/conv2-digits-sign"] == [(2, 2.5), (4, 4.5), (5, 5.0)]
    assert curves["imbalance/conv2-digits-bihalf"] == [(2, 0), (4, 0), (5, 0)]


def test_what_the_command_leaves_is_what_the_runs_flipped(done: Any) -> None:
    assert "first filter of layer 2 (144 weights): bihalf flips as often to +1 as to -1" in done.measured()
    rows, steps = done.table(), done.table("bit_flips_steps")
    assert rows["method"].tolist() == ["sign", "irnet", "bihalf"]
    assert rows["flips"][2] > 0 == rows["most_imbalance"][2]
    assert steps["step"].tolist() == 3 * list(range(1, 23))  # each of an epoch's 22
    assert steps[steps["method"] == "sign"]["to_positive"].sum() == rows["to_positive"][0]
    assert done.curves()["imbalance/conv2-digits-bihalf"] == [(step, 0) for step in range(1, 23)]


def test_another_layer_is_looked_at_in_the_same_runs(done: Any) -> None:
    rows = bit_flips.BitFlips(layer="8").outcome(done.results()).rows
    assert {row["layer"] for row in rows} == {"8"}


def test_all_methods_start_from_the_same_latent_weights_and_signs_half_of_them_plus_one(
    runs_of: Callable[..., list[Run]],
) -> None:
    networks = [build_network(run, 10, 1, 8) for run in runs_of(trials=1)]
    assert len(networks) == 3
    for others in zip(*([weight for _, _, weight in binary_layers(network)] for network in networks), strict=True):
        assert all(torch.equal(others[0], other) for other in others)
    for others in zip(*(binary_weights(network).values() for network in networks), strict=True):
        assert all(torch.equal(others[0], other) for other in others)
        rows = others[0].flatten(1)
        assert (rows > 0).sum(1).eq((rows.shape[1] + 1) // 2).all()

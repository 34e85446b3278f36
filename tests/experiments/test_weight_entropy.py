from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from mpt_bihalf.experiments import weight_entropy
from mpt_bihalf.report.figures import save_figure
from mpt_bihalf.report.traces import mean_curves

OPTIONS = ["--width", "0.25", "--trials", "1"]
Record = dict[str, Any]
Trials = Callable[..., list[Record]]
Measured = Callable[..., tuple[list[Record], pd.DataFrame]]

ODD = entropy([5, 4], base=2)  # nine weights
CONNECTIONS = {"0": 9, "2": 16}
STEPS = (2, 4, 5)


def trace_of(
    method: str, seed: int, entropies: dict[str, list[float]], spread: float = 0.0, model: str = "conv2"
) -> pd.DataFrame:
    """The trace of a run with these layers and, at each of `STEPS`, entropies."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "data": "digits",
                "method": method,
                "seed": seed,
                "step": step,
                "layer": layer,
                "connections": CONNECTIONS[layer],
                "filter_entropy": values[place],
                "filter_entropy_std": spread,
                **shares(CONNECTIONS[layer], values[place]),
            }
            for place, step in enumerate(STEPS)
            for layer, values in entropies.items()
        ]
    )


def shares(connections: int, bits: float) -> dict[str, float]:
    """Lowest and highest share of +1, alike: the most equal, or three fewer."""
    most = connections - connections // 2
    share = (most if bits >= weight_entropy.highest_entropy(np.array([connections])) - 1e-9 else most - 3) / connections
    return {"filter_share_lowest": float(np.float32(share)), "filter_share_highest": float(np.float32(share))}


def falling(start: float, end: float) -> dict[str, list[float]]:
    """Both layers fall (or rise) as much, from the most possible less `start` to that less `end`, in the last step."""
    return {"0": [ODD - start, ODD - start, ODD - end], "2": [1 - start, 1 - start, 1 - end]}


def rows_of(records: list[Record], trace: pd.DataFrame, layer: str = "") -> list[Record]:
    steps = weight_entropy.per_step(weight_entropy.per_layer(records, trace, layer))
    return weight_entropy.rows_of(weight_entropy.per_run(records, steps))


@pytest.fixture
def paper(measured: Measured) -> tuple[list[Record], pd.DataFrame]:
    """As the paper says: bihalf at the most possible, the others below it."""
    return measured(
        {
            "sign": [falling(0.01, 0.02), falling(0.01, 0.03), falling(0.02, 0.025)],
            "irnet": [falling(0.002, 0.004), falling(0.001, 0.002), falling(0.002, 0.003)],
            "bihalf": [falling(0, 0)] * 3,
        },
    )


@pytest.fixture
def reverse(measured: Measured) -> tuple[list[Record], pd.DataFrame]:
    return measured(
        {"sign": [falling(0, 0)] * 2, "bihalf": [falling(0.03, 0.01), falling(0.02, 0.015)]},
    )


@pytest.mark.parametrize("count", [1, 2, 3, 9, 27, 576, 577])
def test_the_highest_entropy_is_that_of_the_most_equal_split(count: int) -> None:
    best = max(entropy([ones, count - ones], base=2) for ones in range(count + 1))
    assert weight_entropy.highest_entropy(np.array([count])) == pytest.approx(best, abs=1e-12)


def test_layers_count_alike_and_the_spread_is_that_within_a_layer(trials: Trials) -> None:
    trace = trace_of("sign", 0, {"0": [0.5, 0.6, 0.7], "2": [0.9, 0.9, 0.8]})
    trace.loc[trace["layer"] == "2", "filter_entropy_std"] = 0.2
    steps = weight_entropy.per_step(weight_entropy.per_layer(trials("sign", 0.0, [90.0]), trace))
    assert list(steps["step"]) == list(STEPS)
    assert list(steps["entropy"]) == pytest.approx([0.7, 0.75, 0.75])
    assert list(steps["spread"]) == pytest.approx([0.2 / 2**0.5] * 3)
    assert list(steps["possible"]) == pytest.approx([(ODD + 1) / 2] * 3)


def test_one_layer_can_be_looked_at(paper: tuple[list[Record], pd.DataFrame]) -> None:
    layers = weight_entropy.per_layer(*paper, "2")
    assert set(layers["layer"]) == {"2"}
    rows = {row["method"]: row for row in rows_of(*paper, "2")}
    assert (rows["bihalf"]["end"], rows["bihalf"]["possible"]) == (1, 1)
    assert rows["sign"]["end"] == pytest.approx(0.975)


def test_a_row_has_the_figures_of_its_method(paper: tuple[list[Record], pd.DataFrame]) -> None:
    records, trace = paper
    trace.loc[trace["method"] == "sign", "filter_entropy_std"] = 0.1
    rows = rows_of(records, trace)
    most = (ODD + 1) / 2
    assert [row["method"] for row in rows] == ["sign", "irnet", "bihalf"]
    expected = {"end": most - 0.025, "end_std": 0.005, "start": most - 0.04 / 3, "spread": 0.1, "possible": most}
    expected |= {"lowest": most - 0.03, "short": 0.03, "difference": -0.025}
    assert {name: rows[0][name] for name in expected} == pytest.approx(expected)
    assert rows[0]["trials"] == 3 and rows[0]["diverged"] == 0


def test_with_a_mask_the_most_possible_is_not_known(trials: Trials) -> None:
    (row,) = rows_of(trials("mpt-sign", 0.5, [90.0]), trace_of("mpt-sign", 0, falling(0.1, 0.1)))
    assert np.isnan(row["possible"]) and np.isnan(row["short"]) and row["exact"] is None
    assert row["end"] == pytest.approx((ODD + 1) / 2 - 0.1)
    assert "allows" not in weight_entropy.finding_of([row])


def test_the_finding_as_the_paper_claims(paper: tuple[list[Record], pd.DataFrame]) -> None:
    finding = weight_entropy.finding_of(rows_of(*paper))
    assert "bihalf 0.9955, irnet 0.9925 (0.0030 less than bihalf, p = 0.035), sign 0.9705 (0.0250 less" in finding
    assert "allows: bihalf; " in finding and "by up to: sign 0.03, irnet 0.004; " in finding
    assert finding.endswith("change while training: sign -0.0117, irnet -0.0013")


def test_the_finding_is_reversed_with_the_records(reverse: tuple[list[Record], pd.DataFrame]) -> None:
    finding = weight_entropy.finding_of(rows_of(*reverse))
    assert "sign 0.9955 (0.0125 more than bihalf, p = 0.13, not told apart), bihalf 0.9830" in finding
    assert "allows: sign; " in finding and "by up to: bihalf 0.03; " in finding
    assert finding.endswith("change while training: bihalf +0.0125")


def test_that_none_is_at_the_most_possible_or_changes_is_told(measured: Measured) -> None:
    finding = weight_entropy.finding_of(rows_of(*measured({"bihalf": [falling(0.01, 0.01)] * 2})))
    assert "always" not in finding
    assert finding.endswith("below the most that an odd or even count allows by up to: bihalf 0.01; "
                            "change while training: none")  # fmt: skip


def test_one_filter_that_is_off_by_one_weight_counts_though_no_mean_shows_it(measured: Measured) -> None:
    records, trace = measured({"bihalf": [falling(0, 0)] * 2})
    assert rows_of(records, trace)[0]["exact"]
    for column, share in (("filter_share_lowest", 7 / 16), ("filter_share_highest", 9 / 16)):
        off = trace.copy()
        off.loc[7, column] = share
        assert off.loc[7, "layer"] == "2"
        (row,) = rows_of(records, off)
        assert not row["exact"]
        assert "always" not in weight_entropy.finding_of([row])


def test_either_side_of_an_odd_count_is_exact(measured: Measured) -> None:
    records, trace = measured({"bihalf": [falling(0, 0)] * 2})
    trace.loc[trace["layer"] == "0", "filter_share_lowest"] = float(np.float32(4 / 9))
    assert rows_of(records, trace)[0]["exact"]


def test_a_step_below_the_most_counts_though_the_end_is_there(measured: Measured) -> None:
    rows = rows_of(*measured({"bihalf": [falling(0.002, 0)] * 2}))
    assert "by up to: bihalf 0.002" in weight_entropy.finding_of(rows)


def test_too_little_to_tell_is_told(measured: Measured, trials: Trials) -> None:
    one = weight_entropy.finding_of(rows_of(*measured({"sign": [falling(0, 0.1)], "bihalf": [falling(0, 0)]})))
    assert "sign 0.8955 (0.1000 less than bihalf)" in one
    assert one.endswith("one trial is too little to tell this from chance")
    lost = trials("sign", 0.0, [None, None])
    assert weight_entropy.finding_of(rows_of(lost, pd.DataFrame())) == (
        "conv2 on digits: no run finished; 2 of 2 trainings of sign diverged"
    )


def test_curves_are_means_over_the_trials_and_bands_end_at_the_most_possible(
    paper: tuple[list[Record], pd.DataFrame],
) -> None:
    records, trace = paper
    layers = weight_entropy.per_layer(records, trace.assign(filter_entropy_std=0.01))
    left, right = weight_entropy.draw(weight_entropy.per_step(layers), layers).axes
    most = (ODD + 1) / 2
    assert list(left.lines[0].get_xdata()) == list(STEPS)
    assert list(left.lines[0].get_ydata()) == pytest.approx([most - 0.04 / 3, most - 0.04 / 3, most - 0.025])
    for band in left.collections:
        assert band.get_paths()[0].vertices[:, 1].max() <= most + 1e-12
    sign, _, bihalf = (line.get_ydata() for line in right.lines)
    assert list(sign) == pytest.approx([1 - ODD + 0.025, 0.025])
    assert list(bihalf) == pytest.approx([1 - ODD, 0])


def test_one_layer_needs_one_panel(paper: tuple[list[Record], pd.DataFrame]) -> None:
    layers = weight_entropy.per_layer(*paper, "0")
    (panel,) = weight_entropy.draw(weight_entropy.per_step(layers), layers).axes
    assert panel.get_title() == "conv2, digits: layer 0"


def test_nothing_finished_is_drawn_too(trials: Trials, tmp_path: Path) -> None:
    layers = weight_entropy.per_layer(trials("sign", 0.0, [None]), pd.DataFrame())
    steps = weight_entropy.per_step(layers)
    assert all(path.exists() for path in save_figure(weight_entropy.draw(steps, layers), tmp_path / "figure"))
    assert mean_curves(steps, ["entropy"]) == {}


def test_tensorboard_gets_the_means_over_the_trials(paper: tuple[list[Record], pd.DataFrame]) -> None:
    curves = mean_curves(weight_entropy.per_step(weight_entropy.per_layer(*paper)), ["entropy"])
    assert list(curves) == [f"entropy/conv2-digits-{method}" for method in ("sign", "irnet", "bihalf")]
    assert curves["entropy/conv2-digits-sign"][-1] == (5, pytest.approx((ODD + 1) / 2 - 0.025))


def test_the_command_measures_what_the_numbers_of_connections_allow(done: Any) -> None:
    assert "always at the most that an odd or even count allows: bihalf" in done.measured()
    rows = done.table()
    assert rows["method"].tolist() == ["sign", "irnet", "bihalf"]
    # Of the five layers only the first has filters of an odd number of weights, 3 x 3 x 1.
    assert rows["possible"].tolist() == pytest.approx([(4 + ODD) / 5] * 3)
    assert rows["lowest"][2] == pytest.approx((4 + ODD) / 5)
    assert len(done.table("weight_entropy_steps")) == 3 * 11  # every second of an epoch's 22 steps
    assert len(done.curves()["entropy/conv2-digits-sign"]) == 11


def test_one_layer_is_looked_at_in_the_same_runs(done: Any) -> None:
    rows = weight_entropy.WeightEntropy(layer="2").outcome(done.results()).rows
    assert {row["possible"] for row in rows} == {1.0}


def test_a_method_without_binary_weights_is_refused(refused: Callable[..., str]) -> None:
    assert "method 'dense' has no binary weights" in refused(*OPTIONS, "--methods=dense")

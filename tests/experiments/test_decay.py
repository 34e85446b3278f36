from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mpt_bihalf.experiments import decay
from mpt_bihalf.report.figures import save_figure
from mpt_bihalf.training import Run

OPTIONS = ["--width", "0.25", "--trials", "1", "--weight-decays", "0", "0.05"]
Record = dict[str, Any]
Trials = Callable[..., list[Record]]

DECAYS = (0.0, 0.01)
SCHEDULES = ("constant", "cosine")
STEPS = (2, 4, 5, 7, 9, 10)
# Late flips, final latent magnitude and late gradients of each setting, as the paper has them.
PAPER = {
    (0.0, "constant"): (30.0, 0.4, 2.0),
    (0.0, "cosine"): (2.0, 0.4, 1.0),
    (0.01, "constant"): (150.0, 0.04, 3.0),
    (0.01, "cosine"): (3.0, 0.1, 1.5),
}
REVERSE = {
    (0.0, "constant"): (20.0, 0.1, 1.0),
    (0.0, "cosine"): (40.0, 0.2, 20.0),
    (0.01, "constant"): (10.0, 0.3, 1.5),
    (0.01, "cosine"): (30.0, 0.3, 30.0),
}
Settings = dict[tuple[float, str], tuple[float, float, float]]


def runs_with(settings: Settings, seeds: int = 3, **changes: Any) -> pd.DataFrame:
    """What `decay_runs` has: trials a little apart from each other, with cut-offs half of the latent magnitude."""
    rows = [
        {"model": "conv2", "data": "digits", "method": "bihalf", "weight_decay": decay, "schedule": schedule}
        | {"seed": seed, "latent_magnitude": latent + seed / 1000, "cut_off": latent / 2, "gradient_early": 10.0}
        | {"gradient_late": gradient, "flips_early": 100.0, "flips_late": flips + seed / 10, "test_top1": 90.0 + seed}
        | changes
        for (decay, schedule), (flips, latent, gradient) in settings.items()
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def trace_of(records: list[Record], figures: dict[str, dict[str, float]]) -> pd.DataFrame:
    """A trace with these layers, the same at each step but for the step itself."""
    setting = ("model", "data", "method", "weight_decay", "schedule", "seed")
    return pd.DataFrame(
        [
            {name: record[name] for name in setting} | {"step": step, "layer": layer} | values
            for record in records
            for step in STEPS
            for layer, values in figures.items()
        ]
    )


LAYERS = {
    "0": {"weights": 8, "connections": 4, "latent_magnitude": 1.0, "cut_off": 0.5, "gradient_magnitude": 0.2}
    | {"flips_to_positive": 3.0, "flips_to_negative": 1.0},
    "2": {"weights": 4, "connections": 4, "latent_magnitude": 4.0, "cut_off": 2.0, "gradient_magnitude": 0.8}
    | {"flips_to_positive": 0.0, "flips_to_negative": 2.0},
}


@pytest.fixture
def steps(trials: Trials) -> pd.DataFrame:
    records = [
        record
        for decay in DECAYS
        for schedule in SCHEDULES
        for record in trials("bihalf", 0.0, [90.0, 92.0], weight_decay=decay, schedule=schedule)
    ]
    return decay.per_step(records, trace_of(records, LAYERS))


def test_figures_of_the_network_weigh_layers_by_their_weights_or_filters(trials: Trials) -> None:
    records = trials("bihalf", 0.0, [90.0])
    steps = decay.per_step(records, trace_of(records, LAYERS))
    assert list(steps["step"]) == list(STEPS)
    assert set(steps["latent_magnitude"]) == {(8 * 1 + 4 * 4) / 12}
    assert set(steps["cut_off"]) == {(2 * 0.5 + 1 * 2) / 3}
    assert list(steps["gradient_magnitude"]) == pytest.approx([(8 * 0.2 + 4 * 0.8) / 12] * len(STEPS))


def test_flips_are_told_per_step_since_the_traced_step_before(trials: Trials) -> None:
    records = trials("bihalf", 0.0, [90.0, 91.0])
    steps = decay.per_step(records, trace_of(records, LAYERS))
    for _, part in steps.groupby("seed"):
        assert list(part["flips_per_step"]) == [6 / 2, 6 / 2, 6, 6 / 2, 6 / 2, 6]


def test_a_run_that_diverged_has_no_steps_but_counts(trials: Trials) -> None:
    records = trials("bihalf", 0.0, [90.0, None])
    steps = decay.per_step(records, trace_of(records, LAYERS))
    assert set(steps["seed"]) == {0}
    runs = decay.per_run(records, steps)
    assert runs[decay.SUMMARY].isna().all(axis=1).tolist() == [False, True]
    (row,) = decay.rows_of(runs)
    assert (row["trials"], row["diverged"], row["test_top1"]) == (1, 1, 90.0)


def test_early_and_late_are_the_first_and_the_last_fifth(trials: Trials) -> None:
    records = trials("bihalf", 0.0, [90.0])
    trace = trace_of(records, {"0": LAYERS["0"]})
    trace["flips_to_positive"] = [10.0, 0, 0, 0, 40, 2]
    trace["flips_to_negative"] = 0.0
    trace["gradient_magnitude"] = [8.0, 1, 1, 1, 6, 2]
    trace["latent_magnitude"] = [1.0, 2, 3, 4, 5, 6]
    (row,) = decay.rows_of(decay.per_run(records, decay.per_step(records, trace)))
    # Of ten steps these are the first two, and the last two: a look at step 9 covers 8 and 9.
    assert (row["flips_early"], row["flips_late"]) == (5, pytest.approx(42 / 3))
    assert (row["gradient_early"], row["gradient_late"]) == (8, 4)
    assert row["latent_magnitude"] == 6


def test_few_looks_are_early_and_late_at_least_once(trials: Trials) -> None:
    records = trials("bihalf", 0.0, [90.0])
    trace = trace_of(records, {"0": LAYERS["0"]})
    (row,) = decay.rows_of(decay.per_run(records, decay.per_step(records, trace[trace["step"] == 5])))
    assert row["flips_early"] == row["flips_late"] == pytest.approx(4 / 5)


def test_a_row_for_each_combination_with_means_over_the_trials() -> None:
    rows = decay.rows_of(runs_with(PAPER))
    assert [(row["weight_decay"], row["schedule"]) for row in rows] == list(PAPER)
    for row, (flips, latent, gradient) in zip(rows, PAPER.values(), strict=True):
        assert row["flips_late"] == pytest.approx(flips + 0.1)
        assert row["latent_magnitude"] == pytest.approx(latent + 0.001)
        assert (row["gradient_late"], row["test_top1"], row["test_top1_std"]) == (gradient, 91.0, 1.0)
        assert (row["trials"], row["diverged"]) == (3, 0)


def test_the_finding_agrees_where_the_records_do() -> None:
    finding = decay.finding_of(runs_with(PAPER))
    for part in (
        "the latent magnitude falls (0.401 to 0.041)",
        "the cut-off falls (0.2 to 0.02)",
        "the late flip count a step rises (30.1 to 150)",
        "from a constant to a cosine rate the late flip count a step falls (90.1 to 2.6)",
        "the late gradient falls (2.5 to 1.25)",
        "while training at a cosine rate the gradient falls (10 to 1.25)",
    ):
        assert part in finding


def test_the_finding_is_reversed_with_the_records() -> None:
    finding = decay.finding_of(runs_with(REVERSE))
    for part in (
        "the latent magnitude rises (0.101 to 0.301)",
        "the cut-off rises",
        "the late flip count a step falls (20.1 to 10.1)",
        "from a constant to a cosine rate the late flip count a step rises (15.1 to 35.1)",
        "the late gradient rises (1.25 to 25)",
        "while training at a cosine rate the gradient rises (10 to 25)",
    ):
        assert part in finding


def test_a_change_that_one_pair_contradicts_is_none() -> None:
    runs = runs_with(PAPER)
    one = (runs["seed"] == 1) & (runs["weight_decay"] == 0.01) & (runs["schedule"] == "constant")
    runs.loc[one, "flips_late"] = 1.0
    finding = decay.finding_of(runs)
    assert finding.count("the late flip count a step does not change consistently") == 2
    assert "the latent magnitude falls" in finding


def test_the_finding_says_where_there_is_too_little_to_tell() -> None:
    assert "too little to tell these from chance" in decay.finding_of(runs_with(PAPER, seeds=1))
    assert "too little" not in decay.finding_of(runs_with(PAPER))
    one_decay = decay.finding_of(runs_with({setting: PAPER[setting] for setting in list(PAPER)[:2]}))
    assert "takes finished runs of two of its values" in one_decay and "cosine rate the late flip" in one_decay


def test_runs_that_diverged_are_told_and_left_out() -> None:
    runs = runs_with(PAPER)
    lost = (runs["weight_decay"] == 0.01) & (runs["seed"] > 0)
    runs.loc[lost, [*decay.SUMMARY, "test_top1"]] = np.nan
    assert decay.finding_of(runs).endswith(", 4 of 12 runs diverged")
    assert "(0.4 to 0.04)" in decay.finding_of(runs)  # of the one pair that is left
    constant = runs_with(PAPER)
    constant.loc[constant["schedule"] == "constant", [*decay.SUMMARY, "test_top1"]] = np.nan
    assert decay.finding_of(constant).count("nothing can be compared, for want of finished pairs of runs") == 2
    assert decay.finding_of(runs_with(PAPER, test_top1=np.nan)) == "conv2, digits, bihalf: all 12 runs diverged"


def test_curves_are_means_in_a_band_over_the_trials(steps: pd.DataFrame) -> None:
    steps.loc[steps["seed"] == 1, "flips_per_step"] *= 3
    panel = decay.draw(steps).axes[2]
    assert panel.lines[0].get_xydata().tolist() == [[s, 2 * f] for s, f in zip(STEPS, [3, 3, 6, 3, 3, 6], strict=True)]
    heights = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (3, 18)


def test_each_network_has_panels_of_its_own_and_no_run_none(steps: pd.DataFrame, tmp_path: Path) -> None:
    both = pd.concat([steps, steps.assign(model="conv4")])
    assert len(decay.draw(both).axes) == 10
    for frame in (steps[steps["weight_decay"] == 0], steps[:0]):
        assert all(path.exists() for path in save_figure(decay.draw(frame), tmp_path / "figure"))


def test_curves_for_tensorboard_are_means_by_step(steps: pd.DataFrame) -> None:
    steps.loc[steps["seed"] == 1, "cut_off"] += 1
    curves = decay.curves_of(steps)
    assert len(curves) == 4 * 4
    assert curves["cut_off/conv2-digits-bihalf-decay0.01-cosine"] == [(step, 1.5) for step in STEPS]


def test_given_weight_decays_go_before_the_recipes_each_once(runs_of: Callable[..., list[Run]]) -> None:
    found = runs_of(weight_decays=[0.5, 0.25, 0.5], trials=1)
    assert [(run.weight_decay, run.schedule) for run in found] == [
        (0.5, "constant"), (0.5, "cosine"), (0.25, "constant"), (0.25, "cosine")
    ]  # fmt: skip


def test_the_command_compares_decays_and_schedules(done: Any) -> None:
    assert "from weight decay 0 to 0.05 at a constant rate the latent magnitude falls" in done.measured()
    table, steps = done.table(), done.table("decay_steps")
    assert table[["weight_decay", "schedule", "trials"]].to_numpy().tolist() == [
        [0.0, "constant", 1], [0.0, "cosine", 1], [0.05, "constant", 1], [0.05, "cosine", 1]
    ]  # fmt: skip
    assert len(steps) == 4 * 5  # looks at steps 5, 10, 15, 20 and 22 of the epoch
    ends = steps[steps["step"] == 22].groupby(["weight_decay", "schedule"])["latent_magnitude"].mean()
    assert table["latent_magnitude"].tolist() == pytest.approx(ends.tolist())
    points = done.curves()["flips_per_step/conv2-digits-bihalf-decay0.05-cosine"]
    assert [step for step, _ in points] == [5, 10, 15, 20, 22]


@pytest.mark.parametrize("bad", [["--weight-decays", "-1"], ["--weight-decays", "x"], ["--methods", "dense"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], refused: Callable[..., str]) -> None:
    assert refused(*bad)

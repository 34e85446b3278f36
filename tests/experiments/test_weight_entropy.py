from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf.recipes import WEIGHT_ENTROPY
from mpt_bihalf.training import Run

TINY = ["--device", "cpu", "--threads", "1", "--epochs", "1", "--trials", "1"]


def test_the_experiment_leaves_table_figure_and_curves_and_goes_on_where_it_was(
    tmp_path: Path, ran: Callable[..., CompletedProcess[str]], rows_of: Callable[[Path], list[dict[str, str]]]
) -> None:
    ended = ran(*TINY, "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    names = {f"weight_entropy{ending}" for ending in (".csv", ".txt", ".md", ".tex", ".png", ".pdf", "_steps.csv")}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "runs", "sweeps", "curves"}

    lines = ended.stdout.splitlines()
    (measured,) = (line for line in lines if line.startswith("measured: "))
    (paper,) = (line for line in lines if line.startswith("paper: "))
    assert "always at the most that an odd or even count allows: bihalf" in measured
    assert "one trial is too little" in measured and "1 bit" in paper

    rows = rows_of(tmp_path / "weight_entropy.csv")
    assert [(row["method"], row["trials"]) for row in rows] == [("sign", "1"), ("irnet", "1"), ("bihalf", "1")]
    # Of the five layers only the first has filters of an odd number of weights, 3 x 3 x 1.
    nine = -(5 / 9 * math.log2(5 / 9) + 4 / 9 * math.log2(4 / 9))
    assert all(float(row["possible"]) == pytest.approx((4 + nine) / 5) for row in rows)
    assert float(rows[2]["lowest"]) == pytest.approx((4 + nine) / 5)
    steps = rows_of(tmp_path / "weight_entropy_steps.csv")
    assert len(steps) == 3 * 11  # every second of an epoch's 22 steps
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    assert len(events.Scalars("entropy/conv2-digits-sign")) == 11

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    again = ran(*TINY, "--layer", "2", "--out", str(tmp_path))
    assert "3 of 3 runs are done already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == times
    assert {row["possible"] for row in rows_of(tmp_path / "weight_entropy.csv")} == {"1.0"}


def test_the_paper_recipe_has_the_settings_of_figure_1(runs_of: Callable[..., list[Run]]) -> None:
    runs = runs_of(recipe="paper")
    assert {run.method for run in runs} == {"sign", "irnet", "bihalf"}
    assert len(runs) == 3 * 5
    settings = {(r.model, r.data, r.epochs, r.batch_size, r.optimizer, r.lr, r.momentum, r.weight_decay) for r in runs}
    assert settings == {("conv2", "cifar10", 100, 128, "sgd", 0.1, 0.9, 1e-4)}
    assert {(run.schedule, run.p_pos, run.skip, run.holdout) for run in runs} == {("cosine", 0.5, (), 0.0)}
    assert all(run.trace for run in runs)


def test_the_default_needs_no_download() -> None:
    assert WEIGHT_ENTROPY["quick"].data == "digits"


def test_a_bad_option_ends_in_one_line_and_changes_nothing(refused: Callable[..., str]) -> None:
    assert "method 'dense' has no binary weights" in refused(*TINY, "--methods=dense")

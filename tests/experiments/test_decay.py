from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf.training import Run

FAST = ["--device", "cpu", "--threads", "1", "--epochs", "1"]


def test_the_paper_recipe_has_the_settings_of_figure_3(runs_of: Callable[..., list[Run]]) -> None:
    found = runs_of(recipe="paper")
    assert {(run.data, run.model, run.method, run.p_pos) for run in found} == {("cifar10", "conv2", "bihalf", 0.5)}
    assert {(run.epochs, run.batch_size, run.lr, run.momentum, run.optimizer) for run in found} == {
        (100, 128, 0.1, 0.9, "sgd")
    }
    assert [(run.weight_decay, run.schedule, run.seed) for run in found] == [
        (decay, schedule, seed)
        for decay in (0.0, 1e-4, 5e-4)
        for schedule in ("constant", "cosine")
        for seed in range(5)
    ]
    assert all(run.trace for run in found)


def test_given_weight_decays_go_before_the_recipes_each_once(runs_of: Callable[..., list[Run]]) -> None:
    found = runs_of(weight_decays=[0.5, 0.25, 0.5], trials=1)
    assert [(run.weight_decay, run.schedule) for run in found] == [
        (0.5, "constant"), (0.5, "cosine"), (0.25, "constant"), (0.25, "cosine")
    ]  # fmt: skip


def test_a_run_leaves_table_figure_steps_and_curves_and_a_second_does_nothing_anew(
    tmp_path: Path, ran: Callable[..., CompletedProcess[str]]
) -> None:
    options = [*FAST, "--trials", "1", "--weight-decays", "0", "0.05", "--out", str(tmp_path)]
    first = ran(*options)
    assert first.returncode == 0, first.stderr
    lines = [line for line in first.stdout.splitlines() if line.startswith(("measured:", "paper:"))]
    assert len(lines) == 2
    assert "from weight decay 0 to 0.05 at a constant rate the latent magnitude falls" in lines[0]
    assert "too little to tell these from chance" in lines[0]
    for ending in (".csv", ".txt", ".md", ".tex", ".png", ".pdf"):
        assert (tmp_path / f"decay{ending}").stat().st_size > 0

    table = pd.read_csv(tmp_path / "decay.csv")
    assert table[["weight_decay", "schedule", "trials"]].to_numpy().tolist() == [
        [0.0, "constant", 1], [0.0, "cosine", 1], [0.05, "constant", 1], [0.05, "cosine", 1]
    ]  # fmt: skip
    steps = pd.read_csv(tmp_path / "decay_steps.csv")
    assert len(steps) == 4 * 5  # looks at steps 5, 10, 15, 20 and 22 of the epoch
    ends = steps[steps["step"] == 22].groupby(["weight_decay", "schedule"])["latent_magnitude"].mean()
    assert table["latent_magnitude"].tolist() == pytest.approx(ends.tolist())
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    tag = "flips_per_step/conv2-digits-bihalf-decay0.05-cosine"
    assert [point.step for point in events.Scalars(tag)] == [5, 10, 15, 20, 22]

    results = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = ran(*options)
    assert "4 of 4 runs are done already" in again.stdout and lines[0] in again.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == results


@pytest.mark.parametrize("bad", [["--weight-decays", "-1"], ["--weight-decays", "x"], ["--methods", "dense"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], refused: Callable[..., str]) -> None:
    assert refused(*bad)

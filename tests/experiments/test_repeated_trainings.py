from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = Path(__file__).parents[2] / "experiments" / "repeated_trainings.py"
FAST = ["--device", "cpu", "--threads", "1", "--epochs", "1", "--trials", "2"]


def test_the_experiment_leaves_all_its_files_and_a_second_call_trains_nothing(
    tmp_path: Path,
    ran: Callable[..., CompletedProcess[str]],
    experiment: Callable[..., int],
    rows_of: Callable[[Path], list[dict[str, str]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    ended = ran(*FAST, "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    names = {f"repeated_trainings{ending}" for ending in (".csv", ".txt", ".md", ".tex", ".png", ".pdf")}
    assert {path.name for path in out.iterdir()} == {*names, "results.csv", "curves", "runs", "sweeps"}

    lines = ended.stdout.splitlines()
    (measured,) = (line for line in lines if line.startswith("measured: "))
    (paper,) = (line for line in lines if line.startswith("paper: "))
    assert "conv2 on digits: bihalf against sign over 2 equal seeds is " in measured
    assert "100 trainings" in paper
    assert (out / "repeated_trainings.txt").read_text().strip() in ended.stdout

    results = rows_of(out / "results.csv")
    assert [(row["method"], row["seed"]) for row in results] == [(m, s) for m in ("sign", "bihalf") for s in "01"]
    for row in rows_of(out / "repeated_trainings.csv"):
        if row["figure"] != "test_top1":
            continue
        values = [float(result["test_top1"]) for result in results if result["method"] == row["method"]]
        assert float(row["mean"]) == pytest.approx(sum(values) / 2)

        events = EventAccumulator(str(out / "curves"))
        events.Reload()
        points = [(point.step, point.value) for point in events.Scalars(f"test_top1/conv2/{row['method']}")]
        assert points == [(rank, pytest.approx(value)) for rank, value in enumerate(sorted(values), 1)]

    times = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    tables = {ending: (out / f"repeated_trainings{ending}").read_bytes() for ending in (".csv", ".png", ".pdf")}
    assert experiment("repeated_trainings", *FAST, "--out", str(out)) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == times
    assert {ending: (out / f"repeated_trainings{ending}").read_bytes() for ending in tables} == tables
    assert measured in capsys.readouterr().out


@pytest.mark.parametrize(
    "bad", ["--trials=0", "--trials=x", "--methods=", "--models=conv3", "--recipe=fast", "--tral=1"]
)
def test_a_bad_option_ends_in_one_line_and_changes_nothing(bad: str, refused: Callable[..., str]) -> None:
    assert refused(*FAST, bad)


def test_the_paper_recipe_has_the_settings_of_figure_4() -> None:
    options: Any = runpy.run_path(str(SCRIPT))["RepeatedTrainings"]
    runs = options(recipe="paper", device="cpu", threads=1).runs_of(lambda method: [{}])
    assert len(runs) == 200
    assert {(run.method, run.seed) for run in runs} == {(m, seed) for m in ("sign", "bihalf") for seed in range(100)}
    shared = {
        (r.model, r.data, r.epochs, r.batch_size, r.optimizer, r.lr, r.momentum, r.weight_decay, r.schedule, r.holdout)
        for r in runs
    }
    assert shared == {("conv2", "cifar10", 100, 128, "sgd", 0.1, 0.9, 1e-4, "cosine", 0.0)}

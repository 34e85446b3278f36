"""The serial engine, and above all what it does under torchrun, where the processes do each run together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mpt_bihalf.sweep.engines import EngineOptions, LocalEngine, SerialEngine, check_engine, make_engine
from mpt_bihalf.sweep.plan import find_plans
from mpt_bihalf.training import Run

ROOT = Path(__file__).parents[3]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SWEEP = ["--models", "conv2", "--methods", "mpt-sign", "--rates", "0.3,0.6,0.9", "--trials", "1", "--epochs", "1"]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torchrun had started two processes, this the first."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


def test_runs_go_to_worker_processes_where_nothing_is_said(tmp_path: Path) -> None:
    assert type(make_engine(tmp_path, [Run(device="cpu", threads=1)], EngineOptions())) is LocalEngine


@pytest.mark.usefixtures("two")
def test_under_torchrun_all_processes_do_one_run_at_a_time(tmp_path: Path) -> None:
    run = Run(device="cpu", threads=1).resolved()
    for options in (EngineOptions(), EngineOptions(engine="serial", jobs=1)):
        assert type(make_engine(tmp_path, [run], options)) is SerialEngine
    for options in (
        EngineOptions(engine="local"),
        EngineOptions(engine="ray"),
        EngineOptions(jobs=2),
        EngineOptions(runs_per_device=2),
    ):
        with pytest.raises(ValueError, match="torchrun's processes do one run at a time, together: leave out --engine"):
            check_engine(options)


def sweep(out: Path, *options: str, at: list[str] = TORCHRUN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*at, str(ROOT / "experiments" / "prune_sweep.py"), *SWEEP, "--out", str(out), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_sweep_under_torchrun_gives_the_same_results_twice(tmp_path: Path) -> None:
    for place in ("one", "other"):
        done = sweep(tmp_path / place, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("results: ") == 1
        lines = (done.stdout + done.stderr).splitlines()
        ends = [line[:5] for line in lines if re.match(r"\[\d/3\] conv2-digits-mpt-sign", line)]
        assert ends == ["[1/3]", "[2/3]", "[3/3]"]
    one, other = ((tmp_path / place / "results.csv").read_text() for place in ("one", "other"))
    assert one == other
    frame = pd.read_csv(tmp_path / "one" / "results.csv")
    assert frame["processes"].tolist() == [2] * 3 and frame["status"].tolist() == ["finished"] * 3
    (plan,) = find_plans(tmp_path / "one")
    again = subprocess.run(plan.command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert "3 of 3 runs are done already" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "local"], "error: torchrun's processes do one run at a time"),
        (["--grid", "batch_size=63"], "error: batch_size 63 cannot be divided evenly among 2 processes"),
        (["--rates", "2"], "error: rates '2': 2 is not in [0, 1)"),
    ],
)
def test_a_mistake_is_told_once_and_nothing_is_written(options: list[str], told: str, tmp_path: Path) -> None:
    done = sweep(tmp_path / "out", *options)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 1 and "exitcode  : 2" in done.stderr
    assert len(lines) == 1 and lines[0].startswith(told)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    runs = tmp_path / "out" / "runs"
    assert sweep(tmp_path / "out", "--rates", "0.6").returncode == 0
    (done,) = runs.iterdir()
    name = done.name.replace("0.6", "0.3").rsplit("-", 1)[0]
    reference = sweep(tmp_path / "reference", "--rates", "0.3")
    assert reference.returncode == 0, reference.stderr
    (whole,) = (tmp_path / "reference" / "runs").glob(f"{name}-*")
    (runs / whole.name / "checkpoint.pt").mkdir(parents=True)
    (runs / whole.name / "metrics.csv").mkdir()  # so that it cannot be written once the others are at work
    failing = sweep(tmp_path / "out")
    errors = [line for line in failing.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and errors[0].startswith("error: 1 of 3 runs failed, the first, conv2-digits-mpt-sign")
    assert "exitcode  : 1" in failing.stderr
    assert len(list(runs.glob("*/result.json"))) == 2

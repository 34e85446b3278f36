from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "method_comparison.py"
COMMAND = [sys.executable, str(SCRIPT)]
FAST = ["--device", "cpu", "--threads", "1", "--models", "conv2", "--trials", "1"]
TUNED = ["--tune", "--tune-lrs", "0.1", "0.3", "--tune-weight-decays", "1e-4", "--tune-trials", "1"]
ENDINGS = (".csv", ".txt", ".md", ".tex", ".png", ".pdf")


def test_the_experiment_leaves_all_its_files_and_a_second_call_trains_nothing(
    tmp_path: Path,
    ran: Callable[..., CompletedProcess[str]],
    experiment: Callable[..., int],
    rows_of: Callable[[Path], list[dict[str, str]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    arguments = [*FAST, "--epochs", "1", "--out", str(out)]
    ended = ran(*arguments)
    assert ended.returncode == 0, ended.stderr
    names = {f"method_comparison{ending}" for ending in ENDINGS}
    assert {path.name for path in out.iterdir()} == {*names, "results.csv", "curves", "runs", "sweeps"}

    lines = ended.stdout.splitlines()
    (measured,) = (line for line in lines if line.startswith("measured: "))
    (paper,) = (line for line in lines if line.startswith("paper: "))
    assert "conv2 on digits: " in measured and "too few to tell from chance" in measured
    assert "79.25" in paper
    assert [row["method"] for row in rows_of(out / "method_comparison.csv")] == ["sign", "irnet", "bihalf"]
    assert {row["scale"] for row in rows_of(out / "results.csv")} == {"kaiming"}

    times = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert experiment("method_comparison", *arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == times
    assert measured in capsys.readouterr().out


@pytest.mark.slow
def test_a_tuned_comparison_killed_in_mid_epoch_ends_as_one_left_alone(
    tmp_path: Path,
    kill_in_epoch: Callable[..., Path],
    experiment: Callable[..., int],
    rows_of: Callable[[Path], list[dict[str, str]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*FAST, *TUNED, "--epochs", "3", "--methods", "bihalf"]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    killed = kill_in_epoch([*COMMAND, *arguments, "--out", str(out)], out, set(), 0.0)
    assert not (out / "tuning.csv").exists()
    assert experiment("method_comparison", *arguments, "--out", str(whole)) == 0
    assert experiment("method_comparison", *arguments, "--out", str(out)) == 0
    assert (killed / "result.json").exists()
    for name in ("tuning.csv", "results.csv", "method_comparison.csv", "method_comparison.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name

    tuning, (trial,) = rows_of(out / "tuning.csv"), rows_of(out / "results.csv")
    (best,) = (row for row in tuning if row["chosen"] == "True")
    assert float(best["validation_top1"]) == max(float(row["validation_top1"]) for row in tuning)
    assert (trial["lr"], trial["weight_decay"], trial["holdout"]) == (best["lr"], best["weight_decay"], "0.0")
    assert len(list((out / "runs").iterdir())) == len(tuning) + 1
    assert str(out / "tuning.csv") in capsys.readouterr().out


@pytest.mark.parametrize(
    "bad",
    ["--trials=0", "--irnet-scale=l1", "--tune-lrs=x", "--tune-lrs=-1", "--tune-trials=0", "--tune-weight-decays="],
)
def test_a_bad_option_ends_in_one_line_and_changes_nothing(bad: str, refused: Callable[..., str]) -> None:
    assert refused(*FAST, *TUNED, bad)


def test_the_help_tells_of_the_scale_of_irnet_and_of_the_grid(
    experiment: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("method_comparison", "--help") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--irnet-scale" in told and "power-of-two: IR-Net's own" in told
    assert "with seeds that no trial has" in told

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = Path(__file__).parents[2] / "experiments" / "mask_controls.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_learned_masks_stand_beside_their_controls_and_a_second_go_does_nothing_anew(tmp_path: Path) -> None:
    options = ["--trials", "2", "--rates", "0.5", "--methods", "mpt-sign", "--epochs", "2", "--out", str(tmp_path)]
    first = run(*options)
    assert first.returncode == 0, first.stderr
    lines = [line for line in first.stdout.splitlines() if line.startswith(("measured:", "paper:"))]
    assert len(lines) == 2 and "a learned mask beats a random one" in lines[0]
    table = pd.read_csv(tmp_path / "mask_controls.csv")
    assert table["trials"].tolist() == [2]
    assert (table["learned"] > table["random"] + 30).all() and (table["learned"] > table["shuffled"] + 30).all()
    for ending in (".txt", ".md", ".tex", ".png", ".pdf"):
        assert (tmp_path / f"mask_controls{ending}").stat().st_size > 0
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    assert {f"conv2/mpt-sign/{mask}" for mask in ("learned", "shuffled", "random")} == set(events.Tags()["scalars"])
    results = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = run(*options)
    assert "4 of 4 runs are done already" in again.stdout and lines[0] in again.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == results


@pytest.mark.parametrize("bad", [["--methods", "sign"], ["--rates", "1"], ["--recipe", "no"], ["--trials", "0"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], tmp_path: Path) -> None:
    end = run("--out", str(tmp_path / "out"), *bad)
    assert end.returncode == 2 and end.stderr.startswith("error: ") and end.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()

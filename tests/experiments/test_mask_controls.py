from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run, run_data

FAST = ["--device", "cpu", "--threads", "1", "--rates", "0.5", "--methods", "mpt-sign"]


def test_learned_masks_stand_beside_their_controls_and_a_second_go_does_nothing_anew(
    tmp_path: Path,
    ran: Callable[..., CompletedProcess[str]],
    experiment: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [*FAST, "--trials", "2", "--epochs", "2", "--out", str(tmp_path)]
    first = ran(*options)
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
    monkeypatch.setattr(run_data, "load_dataset", lambda *arguments: pytest.fail("data are loaded though all is kept"))
    assert experiment("mask_controls", *options) == 0
    again = capsys.readouterr().out
    assert "4 of 4 runs are done already" in again and lines[0] in again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == results


def test_where_all_runs_diverged_that_is_the_outcome(
    tmp_path: Path,
    experiment: Callable[..., int],
    runs_of: Callable[..., list[Run]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for run in runs_of(rates="0.5", methods=["mpt-sign"]):
        run_folder(tmp_path, run).mkdir(parents=True)
        (run_folder(tmp_path, run) / "result.json").write_text('{"status": "diverged: NaN in layer \'0\' in epoch 1"}')
    assert experiment("mask_controls", *FAST, "--out", str(tmp_path)) == 0
    assert "measured: too few finished runs to compare" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "mask_controls.csv")["trials"].tolist() == [0]
    assert (tmp_path / "mask_controls.png").stat().st_size > 0


@pytest.mark.parametrize("bad", [["--methods", "sign"], ["--rates", "1"], ["--recipe", "no"], ["--trials", "0"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], refused: Callable[..., str]) -> None:
    assert refused(*bad)

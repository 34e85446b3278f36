"""From finished runs back to their networks and data."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

import mpt_bihalf
from mpt_bihalf.__main__ import main
from mpt_bihalf.data import evaluation_batches
from mpt_bihalf.endings import run_command
from mpt_bihalf.sweep import EngineOptions, load_run, run_all, runs
from mpt_bihalf.tickets.command import best_run
from mpt_bihalf.tickets.file import read_ticket
from mpt_bihalf.training import Run, train
from mpt_bihalf.training.step import evaluate

SMALL = Run(data="digits", width=0.125, epochs=2, batch_size=64, device="cpu", threads=1, compute="dense")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    methods = [replace(SMALL, method=method, seed=seed) for method in ("mpt-sign", "mpt-bihalf") for seed in (0, 1)]
    run_all(methods, folder, EngineOptions(engine="serial"))
    return folder


def test_a_run_is_loaded_with_its_network_data_and_metrics(out: Path) -> None:
    assert mpt_bihalf.load_run is load_run
    for done in runs(out):
        run, model, data, metrics, result = load_run(str(done.folder))
        assert (run, result) == (done.run, done.result)
        figures, _ = evaluate(model, evaluation_batches(data.test, data), "test")
        assert figures["test_top1"] == result["test_top1"]
        assert [row["epoch"] for row in metrics] == [1, 2]
        assert metrics[-1]["test_top1"] == result["test_top1"]
        with (done.folder / "metrics.csv").open() as file:
            assert len(next(csv.reader(file))) == len(metrics[0])
        assert done.load().run == run
        assert not model.training


def test_the_best_is_by_test_accuracy_where_nothing_was_held_out_and_that_is_said(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = runs(out).best(method="mpt-sign")
    others = [done.result["test_top1"] for done in runs(out).where(method="mpt-sign")]
    assert best.run.method == "mpt-sign"
    assert best.result["test_top1"] == max(others)
    assert len(others) == 2
    told = capsys.readouterr().err
    assert told.startswith("the best is chosen by its test accuracy, as no images were held out (holdout)")
    assert best_run(out, ["method=mpt-sign"]) == best.folder


def test_the_best_is_by_validation_where_images_were_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all([replace(SMALL, holdout=0.2, seed=seed) for seed in (0, 1, 2)], tmp_path, EngineOptions(engine="serial"))
    capsys.readouterr()
    best = runs(tmp_path).best()
    assert best.result["validation_top1"] == max(done.result["validation_top1"] for done in runs(tmp_path))
    assert capsys.readouterr().err == ""


def test_what_is_not_there_is_one_line(out: Path, tmp_path: Path) -> None:
    assert runs(tmp_path) == [] and repr(runs(tmp_path)) == "<0 finished runs>"
    with pytest.raises(ValueError, match="there is no folder"):
        runs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^no finished run$"):
        runs(tmp_path).best()
    with pytest.raises(ValueError, match=r"^no finished run with method=bihalf, seed=3$"):
        runs(out).best(method="bihalf", seed=3)
    with pytest.raises(ValueError, match="a run has no field 'rate'; it has method, model"):
        runs(out).where(rate=0.5)
    with pytest.raises(ValueError, match="is no run's folder"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match="no run has method 'bihalf'"):
        best_run(out, ["method=bihalf"])


def test_a_run_that_is_not_resolved_is_trained_as_this_machine_has_it(tmp_path: Path) -> None:
    run = Run(data="digits", width=0.125, epochs=1)
    result = train(run, tmp_path / "as it is", callbacks=[])
    torch.set_num_threads(1)
    assert result == train(run.resolved(), tmp_path / "resolved", callbacks=[])
    configs = [(tmp_path / name / "config.json").read_bytes() for name in ("as it is", "resolved")]
    assert configs[0] == configs[1]
    torch.set_num_threads(1)


def test_a_ticket_is_made_of_the_best(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(*words: str) -> int:
        arguments = ["mpt_bihalf", "ticket", "make", str(out), "-o", str(tmp_path / "t.ticket"), *words]
        with mock.patch.object(sys, "argv", arguments):
            try:
                run_command(main)
            except SystemExit as end:
                return int(end.code or 0)
        return 0

    assert make("--best", "--where", "method=mpt-sign", "seed=1") == 0
    told = capsys.readouterr().out
    assert "the best of 1: " in told
    assert read_ticket(tmp_path / "t.ticket").about["run"]["seed"] == 1
    assert make("--best") == 0
    assert "the best of 4: " in capsys.readouterr().out
    for words, line in (
        (("--where", "seed=1"), "--where chooses among the runs of a sweep: say --best too"),
        (("--best", "--where", "seed=7"), "no run has seed '7'"),
        ((), "is no run's folder"),
    ):
        assert make(*words) == 2
        assert line in capsys.readouterr().err

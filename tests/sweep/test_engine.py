from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf.data import Dataset, ImageSet, load_dataset
from mpt_bihalf.report import sweep_table
from mpt_bihalf.sweep import PruneSweep, engine, read_records, run_all
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digits are 200 training and 60 test images; the names of the data sets loaded."""
    whole = load_dataset("digits")
    loaded: list[str] = []

    def first(images: ImageSet, count: int) -> ImageSet:
        return ImageSet(images.images[:count], images.labels[:count])

    def load(name: str, *others: Any) -> Dataset:
        loaded.append(name)
        return replace(whole, train=first(whole.train, 200), test=first(whole.test, 60))

    monkeypatch.setattr(engine, "load_dataset", load)
    return loaded


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are trained."""
    done: list[Run] = []
    train = engine.train

    def note(run: Run, *others: Any) -> dict[str, Any]:
        done.append(run)
        return train(run, *others)

    monkeypatch.setattr(engine, "train", note)
    return done


def runs(**options: Any) -> list[Run]:
    settings = {"rates": "0.5", "trials": 2, "epochs": 1, "device": "cpu", "threads": 1, **options}
    return PruneSweep(**settings).runs()


def test_runs_are_done_in_order_and_the_data_loaded_once(tmp_path: Path, trained: list[Run], small: list[str]) -> None:
    wanted = runs(methods=["mpt-sign", "sign"])
    run_all(wanted, tmp_path)
    assert trained == wanted
    assert small == ["digits"]
    assert [record["status"] for record in read_records(tmp_path, wanted)] == ["finished"] * 4


def test_only_what_is_missing_is_done(tmp_path: Path, trained: list[Run]) -> None:
    wanted = runs(methods=["mpt-sign", "sign"])
    run_all(wanted, tmp_path)
    before = read_records(tmp_path, wanted)
    trained.clear()
    run_all(wanted, tmp_path)
    assert trained == []
    for file in run_folder(tmp_path, wanted[2]).iterdir():
        file.unlink()
    run_folder(tmp_path, wanted[2]).rmdir()
    (run_folder(tmp_path, wanted[0]) / "result.json").write_text("{")
    run_all(wanted, tmp_path)
    assert trained == [wanted[0], wanted[2]]
    assert read_records(tmp_path, wanted) == before


def test_a_wider_sweep_does_what_is_new(tmp_path: Path, trained: list[Run]) -> None:
    run_all(runs(methods=["mpt-sign"], trials=1), tmp_path)
    trained.clear()
    run_all(runs(methods=["mpt-sign"], rates="0.3,0.5", trials=1), tmp_path)
    assert [run.prune_rate for run in trained] == [0.3]


def test_a_run_that_diverges_does_not_stop_the_sweep_and_is_not_done_again(tmp_path: Path, trained: list[Run]) -> None:
    wanted = runs(methods=["sign"], trials=1, grid=["lr=1e38,0.1", "weight_decay=10"])
    run_all(wanted, tmp_path)
    records = read_records(tmp_path, wanted)
    assert records[0]["status"] == "diverged: NaN in layer '0' in epoch 1"
    assert records[1]["status"] == "finished"
    assert "diverged" in sweep_table(records)
    trained.clear()
    run_all(wanted, tmp_path)
    assert trained == []


@pytest.mark.parametrize(
    "bad",
    [{"model": "conv8"}, {"batch_size": 500}, {"skip": ("nothing",)}, {"scope": "global", "prune_rate": 0.9999999}],
)
def test_a_run_that_cannot_be_is_told_before_any_is_done(
    bad: dict[str, Any], tmp_path: Path, trained: list[Run]
) -> None:
    good = runs(methods=["mpt-sign"], trials=1)
    with pytest.raises(ValueError):
        run_all([*good, replace(good[0], **bad)], tmp_path / "out")
    assert trained == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_a_sweep_is_the_run_alone(tmp_path: Path, trained: list[Run]) -> None:
    several = runs(methods=["mpt-sign", "mpt-bihalf"], trials=1)
    run_all(several, tmp_path / "a")
    run_all(several[1:], tmp_path / "b")
    results = [json.loads((run_folder(tmp_path / out, several[1]) / "result.json").read_text()) for out in "ab"]
    assert results[0] == results[1]

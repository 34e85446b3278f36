"""Finished runs on corrupted test images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mpt_bihalf.data import evaluation_batches, load_dataset
from mpt_bihalf.data.corrupted import Corrupted
from mpt_bihalf.experiments import robustness
from mpt_bihalf.experiments.robustness import Robustness
from mpt_bihalf.sweep import load_run
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run, train
from tests.reference import one_line_error


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two seeds, on the digits of 8 pixels, and two corruptions of these: turned, and black."""
    out = tmp_path_factory.mktemp("swept")
    for method in ("sign", "mpt-sign"):
        for seed in (0, 1):
            run = Run(method=method, seed=seed, width=0.25, epochs=2, threads=1, device="cpu").resolved()
            train(run, run_folder(out, run), callbacks=[])
    digits = load_dataset("digits")
    images: Any = digits.test.images.permute(0, 2, 3, 1).numpy()  # type: ignore[attr-defined]
    (out / "images").mkdir()
    turned = [np.rot90(images, turns, (1, 2)) for turns in range(5)]
    np.save(out / "images" / "turned.npy", np.concatenate(turned))
    np.save(out / "images" / "black.npy", np.zeros((5 * len(images), 8, 8, 1), np.uint8))
    np.save(out / "images" / "labels.npy", np.tile(digits.test.labels.numpy(), 5))
    return out


def test_figures_are_those_of_the_networks_on_the_images(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Robustness(out=str(swept), corrupted=str(swept / "images")).run()
    told = capsys.readouterr().out
    assert "on 2 corruptions by images the most accurate is" in told
    steps, table = (pd.read_csv(swept / f"robustness{end}.csv") for end in ("_steps", ""))
    assert len(steps) == 4 * (1 + 2 * 5)
    digits = load_dataset("digits")
    for folder in (swept / "runs").iterdir():
        loaded = load_run(folder)
        own = steps[(steps["method"] == loaded.run.method) & (steps["seed"] == loaded.run.seed)]
        by = own.set_index(["corruption", "severity"])["test_top1"]
        assert by["none", 0] == pytest.approx(loaded.result["test_top1"])
        assert by["turned", 1] == by["turned", 5] == by["none", 0]  # by four quarters, which is none
        images = Corrupted(swept / "images", digits).images("turned", 3)
        with torch.no_grad():
            hits = [(loaded.model(x).argmax(1) == y).sum() for x, y in evaluation_batches(images, digits)]
        assert by["turned", 3] == pytest.approx(100 * int(sum(hits)) / len(images))
        assert own[own["corruption"] == "black"]["test_top1"].nunique() == 1
    for _, row in table.iterrows():
        own = steps[(steps["method"] == row["method"]) & (steps["severity"] > 0)]
        assert row["corrupted"] == pytest.approx(own["test_top1"].mean())
        assert row["std"] == pytest.approx(own.groupby("seed")["test_top1"].mean().std())
        assert row["trials"] == 2
    assert (swept / "robustness.png").stat().st_size > 10_000

    def never(*_: Any) -> Any:
        raise AssertionError("worked out again")

    with monkeypatch.context() as patch:  # what is known is not worked out again
        patch.setattr(robustness, "top1_on", never)
        Robustness(out=str(swept), corrupted=str(swept / "images"), names=["turned"]).run()
    assert len(pd.read_csv(swept / "robustness_steps.csv")) == 4 * 6
    Robustness(out=str(swept), corrupted=str(swept / "images"), images=5).run()
    assert (pd.read_csv(swept / "robustness_steps.csv")["test_top1"] % 20 == 0).all()
    with monkeypatch.context() as patch:  # what is known of others is kept too
        patch.setattr(robustness, "top1_on", never)
        Robustness(out=str(swept), corrupted=str(swept / "images"), images=100_000).run()
    kept = next((swept / "robustness-runs").iterdir())
    kept.write_text(kept.read_text().replace('"result": "', '"result": "x'))  # of another result
    with monkeypatch.context() as patch:
        patch.setattr(robustness, "top1_on", never)
        with pytest.raises(AssertionError, match="worked out again"):
            Robustness(out=str(swept), corrupted=str(swept / "images")).run()


def test_a_command_that_was_stopped_goes_on(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(swept / "robustness-runs", ignore_errors=True)
    real, asked = robustness.top1_on, list[str]()

    def until(*given: Any) -> float:
        asked.append(f"{given[4]} {given[5]}")
        if len(asked) == 9:  # within the second corruption of the first run
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(robustness, "top1_on", until)
    with pytest.raises(KeyboardInterrupt):
        Robustness(out=str(swept), corrupted=str(swept / "images")).run()
    Robustness(out=str(swept), corrupted=str(swept / "images")).run()
    assert asked[:9] == ["none 0", *(f"black {s}" for s in range(1, 6)), "turned 1", "turned 2", "turned 3"]
    assert asked[9:14] == [f"turned {s}" for s in range(1, 6)]
    assert len(asked) == 9 + 5 + 3 * 11


def test_files_of_the_users_in_the_default_folder_are_used_as_they_are(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(swept / "images", swept / "corrupted")
    Robustness(out=str(swept), images=5).run()
    assert "on 2 corruptions by corrupted the most accurate" in capsys.readouterr().out
    assert not (swept / "corrupted" / "made.json").exists()
    shutil.rmtree(swept / "corrupted")


def test_what_was_varied_is_told_whatever_it_is_called() -> None:
    rows = [
        {"augmix_severity": level, "trials": 1, "clean": 90.0, "corrupted": 50.0 + level, "std": float("nan")}
        | {f"severity {s}": 50.0 for s in range(1, 6)}
        for level in (1.0, 9.0)
    ]
    assert "the most accurate is 9.0 with 59.00 %" in robustness.finding_of(rows, ["fog"], "CIFAR-10-C")


def test_what_cannot_be_is_told_in_one_line(swept: Path, tmp_path: Path) -> None:
    for told, options in {
        "there is no corruption 'fog' in .*; there are black, turned": {"names": ["fog"]},
        "images must be at least 0, not -1": {"images": -1},
        "holds no corrupted images": {"corrupted": str(tmp_path)},
        "no finished run lies in": {"out": str(tmp_path)},
    }.items():
        with one_line_error(told):
            Robustness(**{"out": str(swept), "corrupted": str(swept / "images"), **options}).run()

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpt_bihalf.training import Run

FAST = ["--device", "cpu", "--threads", "1", "--models", "resnet18", "--width", "0.0625", "--image-size", "16"]


@pytest.mark.timeout(200)
def test_a_folder_like_imagenets_is_trained_on_by_workers_that_decode_and_others_figures_stand_beside_ours(
    tmp_path: Path, experiment: Callable[..., int], rows_of: Callable[[Path], list[dict[str, str]]]
) -> None:
    chance = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 10)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 256, (24, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    options = [*FAST, "--data", f"imagenet:{tmp_path}", "--epochs", "1", "--methods", "sign,bihalf"]
    options += ["--engine", "local", "--jobs", "1"]  # a worker of the sweep starts those that decode
    assert experiment("imagenet", *options, "--out", str(tmp_path / "out")) == 0
    rows = rows_of(tmp_path / "out" / "imagenet.csv")
    assert [(row["model"], row["method"]) for row in rows] == [
        ("resnet18 x0.0625 1/1", "sign"), ("resnet18 x0.0625 1/1", "bihalf")
    ]  # fmt: skip
    assert all(row["mean"] and row["top5"] == "100.0" for row in rows)  # of two classes


def test_the_paper_recipe_has_the_settings_of_table_3(runs_of: Callable[..., list[Run]]) -> None:
    runs = runs_of(recipe="paper")
    assert {(run.model, run.method) for run in runs} == {
        (model, method) for model in ("resnet18", "resnet34") for method in ("sign", "bihalf")
    }
    assert {
        (r.data, r.epochs, r.batch_size, r.lr, r.weight_decay, r.schedule, r.milestones, r.activations, r.image_size)
        for r in runs
    } == {("imagenet", 100, 256, 0.1, 1e-4, "step", (30, 60, 90), "clip", 0)}


def test_data_that_are_not_there_end_in_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "train" in refused(*FAST, "--data", f"imagenet:{tmp_path / 'nowhere'}")

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

FAST = ["--device", "cpu", "--threads", "1", "--models", "resnet18", "--width", "0.0625", "--image-size", "16"]


@pytest.mark.timeout(200)
def test_a_folder_like_imagenets_is_trained_on_by_workers_that_decode_and_others_figures_stand_beside_ours(
    tmp_path: Path, experiment: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    chance = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 10)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 256, (24, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    options = [*FAST, "--data", f"imagenet:{tmp_path}", "--epochs", "1", "--methods", "sign"]
    options += ["--engine", "local", "--jobs", "1"]  # a worker of the sweep starts those that decode
    assert experiment("imagenet", *options, "--out", str(tmp_path / "out")) == 0
    told = capsys.readouterr().out
    assert "\nmeasured: resnet18 x0.0625 1/1 on " in told and "\npaper:    on ImageNet" in told
    rows = pd.read_csv(tmp_path / "out" / "imagenet.csv")
    assert rows[["model", "method"]].to_numpy().tolist() == [["resnet18 x0.0625 1/1", "sign"]]
    assert rows["mean"].notna().all() and (rows["top5"] == 100).all()  # of two classes


def test_data_that_are_not_there_end_in_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "train" in refused(*FAST, "--data", f"imagenet:{tmp_path / 'nowhere'}")

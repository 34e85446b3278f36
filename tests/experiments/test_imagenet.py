from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mpt_bihalf.experiments import Results
from mpt_bihalf.experiments.imagenet import Imagenet
from mpt_bihalf.report.outcome import write_table

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


def test_the_table_has_the_published_figures_with_their_recipes_and_a_note_tells_them(
    trials: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    of_imagenet = {"model": "resnet18", "data": "imagenet:/data", "activations": "clip"}
    records = [record for method in ("sign", "xnor") for record in trials(method, 0.0, [50.0], **of_imagenet)]
    outcome = Imagenet().outcome(cast(Results, SimpleNamespace(records=records)))
    write_table(tmp_path / "imagenet", outcome.rows)
    table = pd.read_csv(tmp_path / "imagenet.csv")
    assert list(table) == [
        "model", "data", "method", "scale", "lr", "weight_decay", "trials", "diverged", "mean", "std", "difference",
        "pairs", "p", "top5", "published", "published_std", "published_top5", "published_recipe",
    ]  # fmt: skip
    unknown = "not known: no authors' code"
    assert table[["method", "published", "published_recipe"]].to_numpy().tolist() == [
        ["sign", 59.98, "100 epochs, no teacher"],
        ["xnor", 51.2, "not known: the authors' code trains AlexNet"],
        ["full precision", 69.3, "not known"],
        ["ABC-Net", 42.7, unknown],
        ["BNN+", 53.0, unknown],
        ["Least-squares", 58.9, "240 epochs, distilled from a real-valued ResNet-18"],
        ["XNOR++", 57.1, "80 epochs, as remembered: no authors' code"],
        ["IR-Net", 58.1, "not known"],
        ["RBNN", 59.9, "150 epochs, batch 512, another network: batch norm behind the last layer"],
        ["bihalf", 60.4, "100 epochs, no teacher"],
    ]
    assert outcome.note == (
        "recipes of the published figures: 100 epochs, no teacher (sign, bihalf); not known: the authors' code trains "
        f"AlexNet (xnor); not known (full precision, IR-Net); {unknown} (ABC-Net, BNN+); 240 epochs, distilled from a "
        "real-valued ResNet-18 (Least-squares); 80 epochs, as remembered: no authors' code (XNOR++); 150 epochs, batch "
        "512, another network: batch norm behind the last layer (RBNN)"
    )


def test_data_that_are_not_there_end_in_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "train" in refused(*FAST, "--data", f"imagenet:{tmp_path / 'nowhere'}")

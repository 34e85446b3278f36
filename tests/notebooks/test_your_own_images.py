"""The notebook goes from a folder of images to a plain binary network."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_sweep_and_a_loop_of_ones_own_train_on_a_folder(tmp_path: Path, executed: Callable[..., Any]) -> None:
    printed, figures = executed(epochs=1, images=200)

    assert "train: 160 images of 10 classes" in printed
    assert "test: 40 images of 10 classes" in printed
    assert len(list((tmp_path / "sweep").glob("runs/torchvision-resnet18-*/result.json"))) == 4
    # Kaiming's scale, sqrt(2 / kept) with 58 of 288 and 115 of 576 connections kept
    values = dict(re.findall(r"^([\w.]+): (-?[\d.]+, 0\.0000, [\d.]+)$", printed, re.M))
    small, large = "-0.1857, 0.0000, 0.1857", "-0.1319, 0.0000, 0.1319"
    assert values == {"3.body.0": small, "3.body.3": small, "4": small, "7.body.0": large, "7.body.3": large}
    trained, plain = re.findall(r"epoch 1: .* test top-1 (\S+) %|plain copy: (\S+) %", printed)
    assert trained[0] == plain[1]
    assert re.findall(r"test top-1 of the ticket: (\S+) %", printed) == [plain[1]]
    assert figures == 3

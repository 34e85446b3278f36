from __future__ import annotations

from collections.abc import Callable
from math import pi
from pathlib import Path

import pandas as pd
import pytest


def test_the_l1_scale_loses_a_third_of_the_variance_in_each_layer(
    tmp_path: Path, experiment: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["--rates", "0.5", "--methods", "mpt-bihalf", "--grid", "scale=kaiming,l1", "--device", "cpu"]
    assert experiment("prune_sweep", *sweep, "--trials", "1", "--epochs", "1", "--out", str(tmp_path)) == 0
    assert experiment("activation_variance", "--out", str(tmp_path)) == 0
    assert "a layer" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "activation_variance.csv").set_index(["scale", "when"])
    assert len(table) == 4
    layers = table[["0", "2", "6", "8", "10"]]
    # W is normal, of standard deviation sqrt(2 / kD), and its mean magnitude sqrt(2 / pi) of that; signs and mask are
    # the same, so each layer gives the same numbers but for the scales up to there.
    ratios = layers.loc["l1", "start"] / layers.loc["kaiming", "start"]
    assert ratios.tolist() == pytest.approx([(2 / pi) ** depth for depth in range(1, 6)], rel=0.15)
    factors = table.loc["l1", "start"]["a layer"] / table.loc["kaiming", "start"]["a layer"]
    assert factors == pytest.approx(2 / pi, rel=0.1)
    assert (layers.xs("end", level="when") != layers.xs("start", level="when")).all(axis=None)


def test_a_folder_without_finished_runs_is_refused(refused: Callable[..., str]) -> None:
    assert "no finished run lies in" in refused()

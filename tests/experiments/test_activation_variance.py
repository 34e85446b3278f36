from __future__ import annotations

from collections.abc import Callable
from math import pi
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf.experiments import activation_variance

OPTIONS: list[str] = []


@pytest.fixture(scope="module")
def name(call: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep lies where the experiment will look."""
    out = tmp_path_factory.mktemp("activation_variance", numbered=False)
    sweep = ["--rates", "0.5", "--methods", "mpt-bihalf", "--grid", "scale=kaiming,l1", "--trials", "1"]
    assert call("prune_sweep", *sweep, "--out", str(out))[0] == 0
    return "activation_variance"


def test_the_l1_scale_loses_a_third_of_the_variance_in_each_layer(done: Any) -> None:
    table = done.table().set_index(["scale", "when"])
    assert len(table) == 4
    layers = table[["0", "2", "6", "8", "10"]]
    # W is normal, of standard deviation sqrt(2 / kD), and its mean magnitude sqrt(2 / pi) of that; signs and mask are
    # the same, so each layer gives the same numbers but for the scales up to there.
    ratios = layers.loc["l1", "start"] / layers.loc["kaiming", "start"]
    assert ratios.tolist() == pytest.approx([(2 / pi) ** depth for depth in range(1, 6)], rel=0.15)
    factors = table.loc["l1", "start"]["a layer"] / table.loc["kaiming", "start"]["a layer"]
    assert factors == pytest.approx(2 / pi, rel=0.1)
    assert (layers.xs("end", level="when") != layers.xs("start", level="when")).all(axis=None)
    for scale in ("kaiming", "l1"):
        start, end = table.loc[scale]["a layer"]
        assert f"mpt-bihalf, scale {scale}: {start:.3g} at the start, {end:.3g} at the end" in done.measured()


def row(scale: str, when: str, factor: float) -> dict[str, Any]:
    return {"method": "sign", "scale": scale, "when": when, "a layer": factor}


def test_the_finding_is_a_geometric_mean_of_the_runs() -> None:
    rows = [row("l1", "start", 0.5), row("l1", "end", 1.0), row("l1", "start", 2.0), row("l1", "end", 4.0)]
    told = activation_variance.finding_of([*rows, row("kaiming", "start", float("nan"))])
    assert told.endswith("sign, scale l1: 1 at the start, 2 at the end (2 runs)")
    assert "several layers" in activation_variance.finding_of([row("l1", "start", float("nan"))])


def test_each_run_is_a_line_before_and_after() -> None:
    rows = [row("l1", when, 0.5) | {"0": 4.0, "2": 2.0} for when in ("start", "end")]
    (panel,) = activation_variance.draw(rows).axes
    assert [line.get_xydata().tolist() for line in panel.lines[:2]] == [[[1, 4], [2, 2]]] * 2
    assert [line.get_linestyle() for line in panel.lines[:2]] == ["--", "-"]


def test_a_folder_without_finished_runs_is_refused(
    experiment: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("activation_variance", "--out", str(tmp_path / "out")) == 2
    assert capsys.readouterr().err == f"error: no finished run lies in {tmp_path / 'out'}\n"
    assert not (tmp_path / "out").exists()

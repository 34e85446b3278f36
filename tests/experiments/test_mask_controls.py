from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import ttest_rel

from mpt_bihalf.experiments import mask_controls
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run, run_data

OPTIONS = ["--epochs", "2", "--trials", "2", "--rates", "0.5", "--methods", "mpt-sign"]
TOP1 = {"learned": [70.0, 71.0, 75.0], "shuffled": [11.0, 9.0, 10.0], "random": [12.0, 15.0, 20.0]}


def frame(top1: dict[str, list[float]], rates: tuple[float, ...] = (0.5, 0.9)) -> pd.DataFrame:
    return pd.DataFrame(
        {"model": "conv2", "method": "mpt-sign", "prune_rate": rate, "seed": seed, "mask": mask, "test_top1": value}
        for rate in rates
        for mask, values in top1.items()
        for seed, value in enumerate(values)
    )


def reversed_() -> dict[str, list[float]]:
    return {"learned": TOP1["shuffled"], "shuffled": TOP1["learned"], "random": [80.0, 81.0, 85.0]}


def test_rows_have_the_means_deviations_and_tests_of_each_setting() -> None:
    rows = mask_controls.rows_of(frame(TOP1))
    assert [row["pruned, %"] for row in rows] == [50, 90]
    for row in rows:
        assert row["trials"] == 3
        assert [row[mask] for mask in mask_controls.MASKS] == [72, 10, pytest.approx(47 / 3)]
        assert row["shuffled std"] == 1
        for mask in ("shuffled", "random"):
            assert row[f"p against {mask}"] == pytest.approx(ttest_rel(TOP1["learned"], TOP1[mask]).pvalue)


def test_the_finding_is_that_of_the_records() -> None:
    forwards = mask_controls.finding_of(mask_controls.rows_of(frame(TOP1)))
    assert "beats a random one of the same count by 56.3 points" in forwards
    assert "beats itself shuffled within its layers by 62.0 points" in forwards and "in 2 of 2 settings" in forwards
    backwards = mask_controls.finding_of(mask_controls.rows_of(frame(reversed_())))
    assert "loses to a random one" in backwards and "loses to itself shuffled" in backwards
    assert "in 0 of 2 settings, in 0 with" in backwards
    same = mask_controls.finding_of(mask_controls.rows_of(frame({mask: [10.0, 20.0] for mask in mask_controls.MASKS})))
    assert "equals a random one" in same and "above it in 0 of 2 settings" in same
    assert "too few" in mask_controls.finding_of(mask_controls.rows_of(frame({"learned": [50.0]})))
    assert all("\n" not in line for line in (forwards, backwards, same))


def test_a_mask_is_a_line_of_means() -> None:
    (panel,) = mask_controls.draw(frame(TOP1)).axes
    assert [line.get_ydata().tolist() for line in panel.get_lines()[:1]] == [[72, 72]]


def test_curves_are_means_by_rate() -> None:
    assert mask_controls.curves_of(frame(TOP1))["conv2/mpt-sign/learned"] == [(50, 72.0), (90, 72.0)]


def test_learned_masks_stand_beside_their_controls(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a learned mask beats a random one" in done.measured()
    table = done.table()
    assert table["trials"].tolist() == [2]
    assert (table["learned"] > table["random"] + 30).all() and (table["learned"] > table["shuffled"] + 30).all()
    assert {f"conv2/mpt-sign/{mask}" for mask in ("learned", "shuffled", "random")} == set(done.curves())
    monkeypatch.setattr(run_data, "load_dataset", lambda *arguments: pytest.fail("data are loaded though all is kept"))
    assert done.measured() in done.again()


def test_where_all_runs_diverged_that_is_the_outcome(
    tmp_path: Path,
    experiment: Callable[..., int],
    runs_of: Callable[..., list[Run]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for run in runs_of(rates="0.5", methods=["mpt-sign"]):
        run_folder(tmp_path, run).mkdir(parents=True)
        (run_folder(tmp_path, run) / "result.json").write_text('{"status": "diverged: NaN in layer \'0\' in epoch 1"}')
    options = ["--device", "cpu", "--threads", "1", "--rates", "0.5", "--methods", "mpt-sign"]
    assert experiment("mask_controls", *options, "--out", str(tmp_path)) == 0
    assert "measured: too few finished runs to compare" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "mask_controls.csv")["trials"].tolist() == [0]
    assert (tmp_path / "mask_controls.png").stat().st_size > 0


@pytest.mark.parametrize("bad", [["--methods", "sign"], ["--rates", "1"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], refused: Callable[..., str]) -> None:
    assert refused(*bad)

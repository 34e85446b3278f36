from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf.training import Run

FAST = ["--device", "cpu", "--threads", "1", "--epochs", "1"]
RATIOS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_the_paper_recipe_has_the_settings_of_figure_5(runs_of: Callable[..., list[Run]]) -> None:
    found = runs_of(recipe="paper")
    assert {
        (run.model, run.epochs, run.batch_size, run.lr, run.momentum, run.weight_decay, run.schedule) for run in found
    } == {("conv2", 100, 128, 0.1, 0.9, 1e-4, "cosine")}
    for data in ("cifar10", "cifar100"):
        for method, ratios in (("bihalf", RATIOS), ("sign", [0.5]), ("irnet", [0.5])):
            of_one = [run.p_pos for run in found if (run.data, run.method, run.seed) == (data, method, 4)]
            assert of_one == ratios
    assert len(found) == 2 * 5 * (9 + 1 + 1)
    assert all(run.trace for run in found)


def test_what_is_given_goes_before_the_recipe(runs_of: Callable[..., list[Run]]) -> None:
    found = runs_of(recipe="paper", data="digits", ratios="0.25,0.75", methods=["mpt-balanced", "bop"], trials=1)
    assert [(run.data, run.method, run.p_pos) for run in found] == [
        ("digits", "mpt-balanced", 0.25), ("digits", "mpt-balanced", 0.75), ("digits", "bop", 0.5)
    ]  # fmt: skip


def test_ratios_are_exact_and_a_second_run_does_nothing_anew(
    tmp_path: Path, ran: Callable[..., CompletedProcess[str]]
) -> None:
    options = [*FAST, "--trials", "2", "--ratios", "0.5,0.9", "--methods", "bihalf", "sign"]
    options += ["--out", str(tmp_path)]
    first = ran(*options)
    assert first.returncode == 0, first.stderr
    lines = [line for line in first.stdout.splitlines() if line.startswith(("measured:", "paper:"))]
    assert len(lines) == 2
    assert "bihalf is best at p_pos 0.5" in lines[0] and "exactly 1 bit" in lines[0]
    assert "the nearest possible in each filter at all 88 traced steps of 4 runs" in lines[0]  # 22 steps an epoch
    for ending in (".csv", ".txt", ".md", ".tex", ".png", ".pdf"):
        assert (tmp_path / f"bit_ratio{ending}").stat().st_size > 0

    table = pd.read_csv(tmp_path / "bit_ratio.csv")
    assert table["method"].tolist() == ["bihalf", "bihalf", "sign"]
    assert table["p_pos"].fillna(-1).tolist() == [0.5, 0.9, -1]
    assert table["exact in each filter"].fillna("").tolist() == ["yes", "yes", ""]
    steps = pd.read_csv(tmp_path / "bit_ratio_steps.csv", dtype={"layer": str})
    assert len(steps) == 6 * 22 * 5
    # Conv2 on 8x8 grey images.
    assert steps.drop_duplicates("layer")["connections"].tolist() == [9, 64 * 9, 64 * 4 * 4, 256, 256]
    nine = steps[(steps["method"] == "bihalf") & (steps["p_pos"] == 0.9) & (steps["layer"] == "0")]
    assert nine["filter_share_lowest"].tolist() == pytest.approx([8 / 9] * 44)
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    assert [point.step for point in events.Scalars("test_top1/conv2-digits-bihalf")] == [500, 900]

    results = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = ran(*options)
    assert "6 of 6 runs are done already" in again.stdout and lines[0] in again.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == results


@pytest.mark.parametrize("bad", [["--ratios", "1.5"], ["--ratios", "0.9..0.1"], ["--methods", "dense"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], refused: Callable[..., str]) -> None:
    error = refused(*bad)
    assert "ratios" in error or "dense" in error

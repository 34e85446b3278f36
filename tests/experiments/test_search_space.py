from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_the_experiment_leaves_table_figure_and_curves_and_says_what_they_show(
    tmp_path: Path, ran: Callable[..., CompletedProcess[str]], rows_of: Callable[[Path], list[dict[str, str]]]
) -> None:
    out = tmp_path / "out"
    ended = ran("--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    names = {f"search_space{ending}" for ending in (".csv", ".txt", ".md", ".tex", ".png", ".pdf")}
    assert {path.name for path in out.iterdir()} == {*names, "curves"}

    lines = ended.stdout.splitlines()
    (measured,) = (line for line in lines if line.startswith("measured: "))
    (paper,) = (line for line in lines if line.startswith("paper: "))
    assert "keep 66 of 76" in measured and "924 of 4,096" in measured
    assert "4,096 combinations give 76" in paper and "924 bi-half ones 66" in paper
    assert (out / "search_space.txt").read_text().strip() in ended.stdout

    rows = rows_of(out / "search_space.csv")
    assert (rows[6]["negatives"], rows[6]["combinations"], rows[6]["boundaries"]) == ("6", "924", "66")

    events = EventAccumulator(str(out / "curves"))
    events.Reload()
    for tag in ("combinations", "boundaries"):
        points = [(point.step, point.value) for point in events.Scalars(tag)]
        assert points == [(int(row["negatives"]), float(row[tag])) for row in rows]


def test_the_grid_is_that_of_the_options(tmp_path: Path, ran: Callable[..., CompletedProcess[str]]) -> None:
    ended = ran("--step", "0.5", "--extent", "0.5", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "of 76" not in ended.stdout.split("paper:")[0]


@pytest.mark.parametrize(
    "bad",
    ["--step=-1", "--step=nan", "--step=inf", "--step=0.001", "--step=10", "--step=x", "--step=", "--extent=0",
     "--extent=-5", "--extent=nan", "--extent=1e999", "--out=", "--stpe=1"],
)  # fmt: skip
def test_a_bad_option_ends_in_one_line_and_changes_nothing(bad: str, refused: Callable[..., str]) -> None:
    assert refused(bad)

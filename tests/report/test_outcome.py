from __future__ import annotations

import csv
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf import files
from mpt_bihalf.report.outcome import Outcome, conclude, write_curves, write_table
from mpt_bihalf.training.events import EventFile

ROWS: list[dict[str, Any]] = [
    {"method": "sign", "figure": "test_top1", "mean": 96.12345, "p": None},
    {"method": "bihalf", "figure": "test_top1", "mean": 97.0, "p": 0.0123456},
]
CURVES = {"top1/sign": [(1, 90.0), (3, 96.5)], "top1/bihalf": [(2, 91.25)]}
ENDINGS = (".csv", ".txt", ".md", ".tex", ".png", ".pdf")


def figure() -> Figure:
    drawn = Figure()
    drawn.subplots().plot([1, 2], label="sign")
    return drawn


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def outcome(tmp_path: Path) -> Callable[..., Path]:
    def make(runs: bool = True, **changes: Any) -> Path:
        parts: dict[str, Any] = {"rows": ROWS, "curves": CURVES, "finding": "sign is behind", "figure": figure()}
        out = tmp_path / "deep" / "out"
        conclude(out, "comparison", Outcome(**parts | changes), "so it is", runs=runs)
        return out

    return make


def test_every_format_is_written_and_nothing_else(outcome: Callable[..., Path]) -> None:
    out = outcome()
    assert {path.name for path in out.iterdir()} == {*(f"comparison{ending}" for ending in ENDINGS), "curves"}


def test_steps_are_written_and_curves_left_alone_where_there_are_none(
    outcome: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = outcome()
    before = [path.read_bytes() for path in (out / "curves").iterdir()]
    outcome(curves=None, steps=pd.DataFrame({"step": [1, 2], "entropy": [0.5, 1.0]}))
    assert (out / "comparison_steps.csv").read_text().splitlines() == ["step,entropy", "1,0.5", "2,1.0"]
    assert [path.read_bytes() for path in (out / "curves").iterdir()] == before
    assert capsys.readouterr().out.count("curves: ") == 1


def test_the_table_is_read_back_with_all_digits(outcome: Callable[..., Path]) -> None:
    with (outcome() / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"method": "sign", "figure": "test_top1", "mean": "96.12345", "p": ""},
        {"method": "bihalf", "figure": "test_top1", "mean": "97.0", "p": "0.0123456"},
    ]


def test_text_markdown_and_latex_have_four_digits_and_a_dash_for_what_is_missing(tmp_path: Path) -> None:
    text = write_table(tmp_path / "comparison", ROWS)
    assert (tmp_path / "comparison.txt").read_text() == text + "\n"
    head, ruler, sign, bihalf = text.splitlines()
    assert head.split() == ["method", "figure", "mean", "p"]
    assert set(ruler) == {"-", " "}
    assert sign.split() == ["sign", "test_top1", "96.12", "-"]
    assert bihalf.split() == ["bihalf", "test_top1", "97", "0.01235"]

    markdown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines(tmp_path, ".md")]
    assert markdown[0] == ["method", "figure", "mean", "p"]
    assert markdown[2:] == [["sign", "test_top1", "96.12", "-"], ["bihalf", "test_top1", "97", "0.01235"]]

    latex = lines(tmp_path, ".tex")
    assert latex[0].startswith(r"\begin{tabular}")
    assert latex[-1] == r"\end{tabular}"
    assert any(line.startswith(" bihalf") and r"test\_top1" in line and line.endswith(r"\\") for line in latex)


def lines(folder: Path, ending: str) -> list[str]:
    return (folder / f"comparison{ending}").read_text().splitlines()


def test_nan_is_missing(tmp_path: Path) -> None:
    rows = [{"mean": float("nan"), "p": 1.0}, {"mean": 2.0, "p": float("nan")}]
    assert "nan" not in write_table(tmp_path / "comparison", rows)
    assert lines(tmp_path, ".csv") == ["mean,p", ",1.0", "2.0,"]
    assert str(rows[0]["mean"]) == "nan", "the caller's rows stay"


def test_a_column_that_only_some_rows_have_is_missing_in_the_others(tmp_path: Path) -> None:
    text = write_table(tmp_path / "comparison", [{"a": 1}, {"a": 2, "b": 3}])
    assert [line.split() for line in text.splitlines()[2:]] == [["1", "-"], ["2", "3"]]
    assert lines(tmp_path, ".csv") == ["a,b", "1,", "2,3"]


def test_a_name_with_a_dot_keeps_it(tmp_path: Path) -> None:
    write_table(tmp_path / "rate0.5", ROWS)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"rate0.5{ending}" for ending in (".csv", ".txt", ".md", ".tex")
    }


def test_the_figure_is_a_readable_png_and_a_pdf(outcome: Callable[..., Path]) -> None:
    out = outcome()
    with Image.open(out / "comparison.png") as image:
        image.load()
    assert (out / "comparison.pdf").read_bytes().startswith(b"%PDF-")


def test_curves_are_read_back(outcome: Callable[..., Path]) -> None:
    assert read_curves(outcome() / "curves") == CURVES


def test_curves_are_replaced_not_appended(tmp_path: Path, outcome: Callable[..., Path]) -> None:
    outcome()
    out = outcome(curves={"top1/sign": [(1, 80.0)]})
    assert read_curves(out / "curves") == {"top1/sign": [(1, 80.0)]}
    assert len(list((out / "curves").iterdir())) == 1
    write_curves(out / "curves", {})
    assert read_curves(out / "curves") == {}


def test_what_others_put_beside_the_curves_stays(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "curves", tmp_path / "elsewhere"
    write_curves(folder, CURVES)
    elsewhere.mkdir()
    mine = [folder / "events.out.tfevents.1.mine", folder / "notes.txt", elsewhere / "events.out.tfevents.1.outcome"]
    for file in mine:
        file.write_text("mine")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "events.out.tfevents.2.outcome").symlink_to(mine[-1])
    write_curves(folder, {})
    assert [file.read_text() for file in mine] == ["mine"] * 3
    assert len(list(folder.iterdir())) == 4  # the two files, the linked folder, the new curves


def test_curves_stay_as_they_were_where_new_ones_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_curves(tmp_path / "curves", CURVES)

    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(EventFile, "flush", fail)
    with pytest.raises(OSError, match="no space left"):
        write_curves(tmp_path / "curves", {"top1/sign": [(1, 0.0)]})
    assert read_curves(tmp_path / "curves") == CURVES
    assert [path.name for path in tmp_path.iterdir()] == ["curves"]


def test_of_two_that_write_curves_at_once_the_last_one_wins_and_none_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flush = tmp_path / "curves", EventFile.flush
    write_curves(folder, {"old": [(1, 1.0)]})

    def late(file: EventFile) -> None:
        monkeypatch.setattr(EventFile, "flush", flush)
        write_curves(folder, CURVES)
        flush(file)

    monkeypatch.setattr(EventFile, "flush", late)
    write_curves(folder, {"overtaken": [(1, 1.0)]})
    assert read_curves(folder) == CURVES
    assert len(list(folder.iterdir())) == 1


def test_many_that_write_curves_at_once_leave_those_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "curves"

    def write(writer: int) -> None:
        for number in range(12):
            write_curves(folder, {f"{writer}": [(step, number) for step in range(3)]})

    with ThreadPoolExecutor(3) as writers:
        for done in [writers.submit(write, writer) for writer in range(3)]:
            done.result()
    (points,) = read_curves(folder).values()
    assert points == [(step, 11.0) for step in range(3)]
    assert len(list(folder.iterdir())) == 1


def test_a_full_disk_is_told_with_the_name_of_the_curves_and_leaves_the_old_ones(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = small_disk / "curves"
    write_curves(folder, CURVES)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(2**27))
    with pytest.raises(OSError, match=rf"No space left on device: '{folder}/events\.\S*\.outcome'$"):
        write_curves(folder, {"top1/sign": [(step, 0.0) for step in range(100)]})
    assert read_curves(folder) == CURVES
    assert len(list(folder.iterdir())) == 1
    assert capfd.readouterr() == ("", "")


def test_a_link_in_the_place_of_the_curves_is_refused_before_anything_is_written(
    tmp_path: Path, outcome: Callable[..., Path]
) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "deep" / "out"
    elsewhere.mkdir()
    (elsewhere / "events.out.tfevents.1.outcome").write_text("mine")
    out.mkdir(parents=True)
    (out / "curves").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="curves is a link"):
        outcome()
    assert [path.name for path in out.iterdir()] == ["curves"]
    assert [path.name for path in elsewhere.iterdir()] == ["events.out.tfevents.1.outcome"]


def test_a_second_outcome_replaces_the_first(outcome: Callable[..., Path]) -> None:
    out = outcome()
    outcome(rows=ROWS[:1])
    assert len(lines(out, ".csv")) == 2
    assert "bihalf" not in (out / "comparison.tex").read_text()
    assert {path.name for path in out.iterdir()} == {*(f"comparison{ending}" for ending in ENDINGS), "curves"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_written_whole_or_stays_as_it_was(
    ending: str, outcome: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = outcome()
    before = (out / f"comparison{ending}").read_bytes()
    replace = files.os.replace

    def broken(source: str, target: Path) -> None:
        if str(target).endswith(ending):
            raise OSError("no space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="no space left"):
        outcome(rows=ROWS[:1])
    assert (out / f"comparison{ending}").read_bytes() == before
    assert not list(out.glob(".*")), "nothing half written is left"


def test_table_finding_claim_and_places_are_printed(
    outcome: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = outcome()
    told = capsys.readouterr().out
    assert (out / "comparison.txt").read_text() in told
    printed = told.splitlines()
    assert "measured: sign is behind" in printed
    assert "paper:    so it is" in printed
    assert printed.index("measured: sign is behind") + 1 == printed.index("paper:    so it is")
    assert not [line for line in printed if line.startswith("note:")]
    assert f"table:    {out / 'comparison'}.csv, .txt, .md, .tex" in printed
    assert f"figure:   {out / 'comparison.png'}, {out / 'comparison.pdf'}" in printed
    assert printed[-1].startswith("curves:   ")


def test_a_note_stands_behind_the_claim(outcome: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    outcome(note="mind the recipe")
    printed = capsys.readouterr().out.splitlines()
    claim = printed.index("paper:    so it is")
    assert printed[claim + 1 : claim + 3] == ["note:     mind the recipe", ""]


@pytest.mark.parametrize("runs", [True, False])
def test_the_command_for_the_curves_shows_those_of_the_runs_too_where_there_are_any(
    runs: bool, outcome: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = outcome(runs=runs)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("curves:"))
    assert command[1:] == ["-m", "tensorboard.main", "--logdir", str(out if runs else out / "curves")]

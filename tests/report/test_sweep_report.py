from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpt_bihalf.data.digest import DataDigest, Part
from mpt_bihalf.experiments.prune_sweep import PruneSweep
from mpt_bihalf.report import draw_sweep, save_figure, sweep_table
from mpt_bihalf.report.sweep_report import choose_view, chosen_records, records_of, sweep_report
from mpt_bihalf.sweep import read_records
from mpt_bihalf.sweep.plan import write_plan
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.sweep.shown import Shown
from mpt_bihalf.sweep.survey import survey
from mpt_bihalf.training import Run
from mpt_bihalf.training.log import MEASURED

Leave = Callable[..., None]
ENDINGS = (".csv", ".md", ".pdf", ".png", ".tex", ".txt")


@pytest.fixture
def leave(tmp_path: Path) -> Leave:
    """Leave a finished run in the folder, or with None one that diverged; seen: what tells its data from others."""

    def do(run: Run, top1: float | None, seen: str = "", **figures: float | str) -> None:
        folder = run_folder(tmp_path, run)
        folder.mkdir(parents=True)
        if seen:
            (folder / "data.json").write_text(json.dumps(digest_of(seen).to_json()))
        (folder / "config.json").write_text(json.dumps(asdict(run)))
        result: dict[str, Any] = {"status": "diverged: NaN in layer '0' in epoch 2"}
        if top1 is not None:
            names = ("train_loss", "train_top1", "train_top5", "test_loss", "test_top5")
            result = {"status": "finished", "epochs": run.epochs, **dict.fromkeys(names, 1.5), "test_top1": top1}
        (folder / "result.json").write_text(json.dumps(result | figures))

    return do


def digest_of(seen: str) -> DataDigest:
    return DataDigest(1, ("a", "b"), Part(3, "labels", seen), Part(2, "labels", seen))


def grid(**options: Any) -> list[Run]:
    settings = {"models": ["conv2"], "methods": ["mpt-sign", "sign"], "rates": "0.1,0.5", "trials": 3}
    return PruneSweep(device="cpu", threads=1, **{**settings, **options}).runs()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report(out: Path, capsys: pytest.CaptureFixture[str], **shown: Any) -> str:
    sweep_report(survey(out), Shown(**shown))
    return capsys.readouterr().out


def test_a_finished_pruning_sweep_has_the_table_and_the_figure_of_its_experiment(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = grid(models=["conv2", "conv4"], methods=["mpt-sign", "mpt-bihalf", "sign"])
    write_plan(tmp_path, runs)
    for number, run in enumerate(runs):
        leave(run, 50 + number % 7 if number != 4 else None)
    text = report(tmp_path, capsys)
    records = read_records(tmp_path, runs)
    assert text.startswith(sweep_table(records) + "\n")
    assert (tmp_path / "report" / "test_top1.txt").read_text() == sweep_table(records) + "\n"
    (png, _) = save_figure(draw_sweep(records), tmp_path / "expected")
    assert (tmp_path / "report" / "test_top1.png").read_bytes() == png.read_bytes()


def test_it_is_written_in_every_form_and_nowhere_else(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in grid():
        leave(run, 50.0)
    before = {path for path in tmp_path.rglob("*")}
    text = report(tmp_path, capsys)
    new = {path for path in tmp_path.rglob("*")} - before
    assert new == {tmp_path / "report", *(tmp_path / "report" / f"test_top1{ending}" for ending in ENDINGS)}
    assert str(tmp_path / "report" / "test_top1") in text
    assert "\\toprule" in (tmp_path / "report" / "test_top1.tex").read_text()
    assert "|---" in (tmp_path / "report" / "test_top1.md").read_text()


def test_the_csv_file_has_a_row_a_setting_with_the_numbers_apart(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = grid(rates="0.1,0.5")
    write_plan(tmp_path, runs)
    for run, top1 in zip(runs, (50.0, 52.0, 57.0, 60.0, None), strict=False):
        leave(run, top1)
    report(tmp_path, capsys)
    first, second, third = rows(tmp_path / "report" / "test_top1.csv")
    assert (first["model"], first["method"], first["prune_rate"]) == ("conv2", "mpt-sign", "0.1")
    assert float(first["mean"]) == 53.0
    assert float(first["std"]) == pytest.approx(np.std([50, 52, 57], ddof=1))
    assert [first[name] for name in ("finished", "diverged", "missing", "trials")] == ["3", "0", "0", "3"]
    assert [second[name] for name in ("mean", "std", "finished", "diverged", "missing")] == ["60.0", "", "1", "1", "1"]
    assert [third[name] for name in ("method", "mean", "std", "missing")] == ["sign", "", "", "3"]


def test_a_half_finished_sweep_says_so_and_marks_what_is_missing(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = grid()
    write_plan(tmp_path, runs)
    for run, top1 in zip(runs, (50.0, 52.0, 57.0, 60.0, None), strict=False):
        leave(run, top1)
    text = report(tmp_path, capsys)
    assert "5 of 9 runs are done; 4 missing" in text
    assert "60.00 (1 of 3 diverged, 1 missing)" in text
    (unpruned,) = [line for line in text.splitlines() if "unpruned" in line]
    assert unpruned.split() == ["unpruned", "missing"]


def test_some_trials_of_a_setting_are_told_as_so_many_of_all(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = grid(methods=["mpt-sign"])
    write_plan(tmp_path, runs)
    for run in runs[1:]:
        leave(run, 40.0 + run.seed)
    assert "41.50 ± 0.71 (2 of 3)" in report(tmp_path, capsys)


def test_another_number_that_was_varied_is_the_axis_where_no_rate_was(tmp_path: Path, leave: Leave) -> None:
    for run in grid(rates="0.5", grid=["lr=0.1,0.01,0.001"]):
        leave(run, 50.0 + run.lr)
    frame = records_of(survey(tmp_path))
    view = choose_view(frame, Shown())
    assert (view.x, view.columns) == ("lr", "method")
    (panel,) = draw_sweep(frame, view).axes
    assert (panel.get_xlabel(), panel.get_xscale()) == ("lr", "log")
    curve = panel.containers[0].lines[0].get_xydata()
    assert curve.tolist() == pytest.approx(np.array([[0.001, 50.001], [0.01, 50.01], [0.1, 50.1]]))


def test_methods_stand_side_by_side_where_nothing_else_was_varied(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in grid(methods=["irnet", "sign", "bihalf"]):
        leave(run, 50.0 + len(run.method))
    frame = records_of(survey(tmp_path))
    view = choose_view(frame, Shown())
    assert (view.x, view.columns) == ("method", "")
    (panel,) = draw_sweep(frame, view).axes
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["sign", "irnet", "bihalf"]
    (points,) = panel.containers
    assert points.lines[0].get_xydata().tolist() == [[0, 54], [1, 55], [2, 56]]
    lines = report(tmp_path, capsys).splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["sign", "irnet", "bihalf"]


def test_a_single_rate_is_told(tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]) -> None:
    for run in grid(rates="0.5", methods=["mpt-sign", "mpt-bihalf", "sign"]):
        leave(run, 50.0 + len(run.method))
    lines = report(tmp_path, capsys).splitlines()
    assert lines[0].startswith("conv2, digits, 50 % pruned: test top-1 in %")
    assert [line.split()[0] for line in lines[3:6]] == ["sign", "mpt-sign", "mpt-bihalf"]


def test_networks_are_rows_where_only_they_and_methods_were_varied(tmp_path: Path, leave: Leave) -> None:
    for run in grid(rates="0.5", models=["conv2", "conv4"]):
        leave(run, 50.0)
    assert choose_view(records_of(survey(tmp_path)), Shown()).x == "model"


def test_one_run_alone_has_a_report(tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]) -> None:
    leave(Run(epochs=1, device="cpu", threads=1), 51.5)
    text = report(tmp_path, capsys)
    assert "51.50" in text
    assert "*" not in text
    assert "fewer than 3 seeds stand behind 1 of 1 cells" in text


def test_runs_are_pooled_over_what_is_not_asked_for_and_it_says_so(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in grid(models=["conv2", "conv4"], methods=["mpt-sign"], trials=2):
        leave(run, 100 * run.prune_rate + (run.model == "conv4"))
    text = report(tmp_path, capsys, by=["model", "method"])
    assert "each mean is over prune_rate 0.1, 0.5" in text
    assert [(row["model"], float(row["mean"]), row["trials"]) for row in rows(tmp_path / "report/test_top1.csv")] == [
        ("conv2", 30.0, "4"),
        ("conv4", 31.0, "4"),
    ]


def test_rows_columns_and_parts_can_be_any_fields(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in grid(models=["conv2", "conv4"], grid=["lr=0.1,0.01"], trials=1):
        leave(run, 50.0)
    tables = report(tmp_path, capsys, x="lr", columns="model").split("\n\n")
    assert [table.splitlines()[0].split(":")[0] for table in tables[:3]] == [
        "digits, sign",
        "digits, mpt-sign, prune_rate 0.1",
        "digits, mpt-sign, prune_rate 0.5",
    ]
    assert tables[1].splitlines()[1].split() == ["lr", "conv2", "conv4"]
    assert [line.split()[0] for line in tables[1].splitlines()[3:]] == ["0.01", "0.1"]


def test_seeds_can_be_told_apart(tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]) -> None:
    for run in grid(methods=["mpt-sign"], rates="0.5"):
        leave(run, 50.0 + run.seed)
    report(tmp_path, capsys, x="seed")
    assert [(row["seed"], row["mean"]) for row in rows(tmp_path / "report/test_top1.csv")] == [
        ("0", "50.0"),
        ("1", "51.0"),
        ("2", "52.0"),
    ]


def test_any_figure_of_the_results_can_be_shown_and_the_lower_loss_is_the_better(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in grid(rates="0.5", methods=["mpt-sign", "mpt-bihalf"], models=["conv2", "conv4"], trials=1):
        leave(run, 50.0, test_loss=1.0 if run.method == "mpt-sign" else 2.0)
    text = report(tmp_path, capsys, figure="test_loss")
    assert "test loss, 1 trial" in text
    assert "1.0000 *" in text
    assert "2.0000 *" not in text
    assert (tmp_path / "report" / "test_loss.csv").exists()


def test_runs_without_the_figure_are_left_out_and_counted(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = grid(methods=["mpt-sign"], rates="0.5")
    leave(first, 50.0, validation_top1=40.0)
    leave(second, 50.0)
    leave(third, None)
    text = report(tmp_path, capsys, figure="validation_top1")
    assert "1 finished runs have no validation_top1 and are left out" in text
    (row,) = rows(tmp_path / "report" / "validation_top1.csv")
    assert [row[name] for name in ("mean", "finished", "diverged", "missing")] == ["40.0", "1", "1", "0"]


def test_runs_whose_results_have_a_note_are_named_and_shown(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = grid(methods=["mpt-sign"], rates="0.5")
    leave(first, 50.0)
    leave(second, 10.0, note="it looks at nothing")
    leave(third, 30.0)
    text = report(tmp_path, capsys)
    assert f"\nit looks at nothing: {second.name}\n" in text
    assert "30.00 ± 20.00" in text
    assert "it looks at nothing" not in report(tmp_path, capsys, where=["seed=0"])


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (["model=conv4"], {("conv4", "mpt-sign", 0.1), ("conv4", "mpt-sign", 0.5), ("conv4", "sign", 0.0)}),
        (["method=sign", "model=conv2"], {("conv2", "sign", 0.0)}),
        (["method=sign,mpt-sign", "prune_rate=0.05..0.2", "model=conv2"], {("conv2", "mpt-sign", 0.1)}),
        (["prune-rate=0.5,0", "model=conv2"], {("conv2", "mpt-sign", 0.5), ("conv2", "sign", 0.0)}),
        (["prune_rate=0.1..0.5", "model=conv4"], {("conv4", "mpt-sign", 0.1), ("conv4", "mpt-sign", 0.5)}),
        (["prune_rate=0.50", "learn_mask=true", "skip=none", "model=conv2"], {("conv2", "mpt-sign", 0.5)}),
    ],
)
def test_where_keeps_the_runs_that_all_of_it_holds_for(
    where: list[str], kept: set[Any], tmp_path: Path, leave: Leave
) -> None:
    for run in grid(models=["conv2", "conv4"]):
        leave(run, 50.0)
    frame = chosen_records(records_of(survey(tmp_path)), where)
    assert set(frame[["model", "method", "prune_rate"]].itertuples(index=False, name=None)) == kept


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({"by": ["colour"]}, ["colour", "prune_rate"]),
        ({"x": "colour"}, ["colour", "prune_rate"]),
        ({"columns": "colour"}, ["colour", "prune_rate"]),
        ({"x": "model", "columns": "model"}, ["model"]),
        ({"figure": "speed"}, ["speed", "test_loss", "test_top1"]),
        ({"figure": "epochs"}, ["epochs", "test_top1"]),
        ({"figure": "../../x"}, ["test_top1"]),
        ({"where": ["colour=red"]}, ["colour", "prune_rate"]),
        ({"where": ["model"]}, ["field=value"]),
        ({"where": ["model="]}, ["field=value"]),
        ({"where": ["model=conv8"]}, ["conv8", "conv2"]),
        ({"where": ["prune_rate=0.2"]}, ["0.2", "0.1, 0.5"]),
        ({"where": ["prune_rate=0.6..0.9"]}, ["0.1, 0.5"]),
        ({"where": ["prune_rate=x..y"]}, ["0.1, 0.5"]),
        ({"where": ["prune_rate=nan"]}, ["0.1, 0.5"]),
        ({"where": ["learn_mask=1"]}, ["true"]),
    ],
)
def test_what_is_unknown_is_an_error_that_names_the_known(
    shown: dict[str, Any], words: list[str], tmp_path: Path, leave: Leave
) -> None:
    for run in grid():
        leave(run, 50.0)
    with pytest.raises(ValueError) as fault:
        sweep_report(survey(tmp_path), Shown(**shown))
    assert all(word in str(fault.value) for word in words), fault.value
    assert not (tmp_path / "report").exists()


def test_a_sweep_of_which_nothing_is_done_has_no_report(tmp_path: Path) -> None:
    write_plan(tmp_path, grid())
    with pytest.raises(ValueError, match="none of 9 runs is done yet"):
        sweep_report(survey(tmp_path), Shown())


def test_a_sweep_of_which_all_runs_diverged_has_one(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in grid(methods=["mpt-sign"]):
        leave(run, None)
    assert "diverged" in report(tmp_path, capsys)
    with pytest.raises(ValueError, match="test_top1"):
        report(tmp_path, capsys, figure="../outside")


def test_a_link_in_the_place_of_the_report_is_not_followed(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    out, elsewhere = tmp_path, tmp_path / "elsewhere"
    leave(grid()[0], 50.0)
    elsewhere.mkdir()
    (out / "report").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="link"):
        report(out, capsys)
    assert "50.00" in capsys.readouterr().out
    assert list(elsewhere.iterdir()) == []
    (out / "report").unlink()
    (out / "report").mkdir()
    (elsewhere / "file").write_text("mine")
    for ending in ENDINGS:
        (out / "report" / f"test_top1{ending}").symlink_to(elsewhere / "file")
    report(out, capsys)
    assert (elsewhere / "file").read_text() == "mine"


def test_a_report_can_go_anywhere(tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]) -> None:
    leave(grid()[0], 50.0)
    report(tmp_path, capsys, to=str(tmp_path / "a" / "b"))
    assert len(list((tmp_path / "a" / "b").iterdir())) == len(ENDINGS)
    assert not (tmp_path / "report").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user without rights beside this one")
def test_who_may_not_write_reads_the_tables_and_learns_of_another_place(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(grid()[0], 50.0)
    place = tmp_path
    while place != place.parent and not place.stat().st_mode & 0o001:
        place.chmod(place.stat().st_mode | 0o011)
        place = place.parent
    os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match="--to"):
            report(tmp_path, capsys)
    finally:
        os.seteuid(0)
    assert "50.00" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["$x$", "$\\frac$", "$", "a\x1b[2Jb", "line\nbreak", "ü|&_%", "a" * 300])
def test_a_data_folder_of_any_name_is_reported(
    name: str, tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in grid():
        leave(replace(run, data=f"folder:/data/{name}"), 50.0)
    text = report(tmp_path, capsys)
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_wide_tables_are_broken_at_the_width_of_the_screen_only_on_the_screen(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["mpt-sign", "mpt-bihalf", "mpt-balanced", "magnitude-sign", "magnitude-bihalf"]
    for run in grid(methods=methods, trials=2):
        leave(run, 50.0 + run.seed)
    sweep_report(survey(tmp_path), Shown(), columns=60)
    tables = capsys.readouterr().out.split("tables:")[0]
    assert max(map(len, tables.splitlines()[1:])) <= 60
    assert all(method in tables for method in methods)
    assert tables.count("10 %") == 2
    assert (tmp_path / "report" / "test_top1.txt").read_text().count("10 %") == 1


def test_of_very_many_panels_the_first_are_drawn_and_the_figure_says_so(tmp_path: Path, leave: Leave) -> None:
    values = ",".join(str(round(0.001 * number, 3)) for number in range(1, 31))
    for run in grid(methods=["mpt-sign"], grid=[f"lr={values}"], trials=1):
        leave(run, 50.0)
    figure = draw_sweep(records_of(survey(tmp_path)))
    assert len(figure.axes) == 24
    assert "the first 24 of 30 panels" in figure.get_supxlabel()


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_equal_data_under_two_paths_are_one_setting_and_a_run_done_twice_counts_once(
    kind: str, tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = grid(methods=["mpt-sign"], rates="0.5", trials=1)
    here, there = (replace(run, data=f"{kind}:/{place}/images") for place in ("here", "there"))
    leave(here, 50.0, "x")
    for seed, top1 in ((0, 10.0), (1, 52.0)):
        leave(replace(there, seed=seed), top1, "x")
    write_plan(tmp_path, [here, *(replace(there, seed=seed) for seed in range(3))])
    text = report(tmp_path, capsys)
    assert f"{there.data} holds the same data as {here.data}, and is shown as it" in text
    assert "1 runs repeat others on the same data and are counted once" in text
    (row,) = rows(tmp_path / "report" / "test_top1.csv")
    assert (row["data"], float(row["mean"])) == (here.data, (50.0 + 52.0) / 2)
    assert [row[name] for name in ("finished", "missing", "trials")] == ["2", "1", "3"]


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_different_data_under_one_path_are_two_settings_with_names_of_their_own(
    kind: str, tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [replace(run, data=f"{kind}:/images") for run in grid(methods=["mpt-sign"], rates="0.5", trials=4)]
    for run, seen in zip(runs, ("x", "x", "y", ""), strict=True):
        leave(run, 50.0 + run.seed, seen)
    text = report(tmp_path, capsys)
    assert f"{kind}:/images was 2 different data sets at different times" in text
    assert "runs that do not tell what data they saw: 1" in text
    found = {row["data"]: (float(row["mean"]), row["trials"]) for row in rows(tmp_path / "report" / "test_top1.csv")}
    name = "folder:/images" if kind == "folder" else "imagenet"
    x, y = (f"{name} ({digest_of(seen).sha256[:12]})" for seen in "xy")
    assert found == {x: (50.5, "2"), y: (52.0, "1"), f"{kind}:/images": (53.0, "1")}
    short = "images" if kind == "folder" else "imagenet"
    assert all(f"{short} ({digest_of(seen).sha256[:12]})" in text for seen in "xy")


def test_an_empty_field_of_a_setting_is_none_in_the_csv_file(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = grid(methods=["mpt-sign"], rates="0.5", trials=1)
    for skip in ((), ("first",)):
        leave(replace(run, skip=skip), 50.0)
    report(tmp_path, capsys)
    assert {row["skip"] for row in rows(tmp_path / "report" / "test_top1.csv")} == {"none", "first"}


def test_different_data_in_folders_of_one_name_have_names_of_their_own(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = grid(methods=["mpt-sign"], rates="0.5", trials=1)
    for place, seen, top1 in (("a", "x", 50.0), ("b", "y", 60.0)):
        leave(replace(run, data=f"folder:/{place}/images"), top1, seen)
    leave(replace(run, data="folder:/a/images", seed=1), 62.0, "y")  # what lies in b now lay in a before
    text = report(tmp_path, capsys)
    assert "folder:/a/images was 2 different data sets at different times" in text
    x, y = (f"images ({digest_of(seen).sha256[:12]})" for seen in "xy")
    assert x in text and y in text
    found = sorted((row["mean"], row["trials"]) for row in rows(tmp_path / "report" / "test_top1.csv"))
    assert found == [("50.0", "1"), ("61.0", "2")]


def test_a_run_whose_data_are_not_known_is_no_second_trial_of_the_same_seed(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = grid(methods=["mpt-sign"], rates="0.5", trials=1)
    here, there = (replace(run, data=f"folder:/{place}/images") for place in ("here", "there"))
    leave(here, 50.0, "")
    leave(replace(here, seed=1), 51.0, "x")
    leave(there, 50.0, "x")
    report(tmp_path, capsys)
    (row,) = rows(tmp_path / "report" / "test_top1.csv")
    assert (row["mean"], row["trials"]) == ("50.5", "2")


def leave_layers(folder: Path, shares: list[float]) -> None:
    """layers.csv of two epochs; shares: of +1 in each layer at the end."""
    lines = [",".join(["epoch", "layer", "weights", *MEASURED])]
    for epoch in (1, 2):
        for name, share in zip(("features.0", "head"), shares, strict=True):
            lines.append(f"{epoch},{name},100,0.9,0.8,{share if epoch == 2 else 0.01},0.25,1,2,0.5")
    (folder / "layers.csv").write_text("\n".join(lines) + "\n")


def test_layers_are_shown_by_their_names_at_the_end_of_the_runs(
    tmp_path: Path, leave: Leave, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in grid(rates="0.5", methods=["mpt-sign", "mpt-bihalf"], trials=2, epochs=2):
        leave(run, 50.0)
        ours = run.method == "mpt-bihalf"
        leave_layers(run_folder(tmp_path, run), [0.5, 0.5] if ours else [0.3 + 0.1 * run.seed, 0.7])
    text = report(tmp_path, capsys, layers=True)
    share = text.split("positive share, mean")[1].split("\n\n")[0]
    assert re.search(r"features\.0 +0\.35 ± 0\.0707 +0\.5 ± 0\n", share)
    assert re.search(r"head +0\.7 ± 0 +0\.5 ± 0", share)
    assert "0.01" not in text
    assert "kept, mean" in text
    assert "entropy, mean" in text
    folder = tmp_path / "report"
    assert {path.name for path in folder.glob("layers*.png")} == {
        f"layers_{figure}.png" for figure in ("kept", "positive_share", "entropy")
    }
    told = [row for row in rows(folder / "layers.csv") if row["figure"] == "positive_share"]
    assert [(row["layer"], row["method"], row["trials"]) for row in told[:2]] == [
        ("features.0", "mpt-sign", "2"),
        ("head", "mpt-sign", "2"),
    ]
    for ending in (".md", ".tex", ".txt"):
        assert "features.0" in (folder / f"layers{ending}").read_text()


def test_runs_without_figures_of_layers_are_one_line(tmp_path: Path, leave: Leave) -> None:
    leave(Run(method="dense", epochs=1, device="cpu", threads=1), 51.5)
    with pytest.raises(ValueError, match="layers: no finished run has binary layers whose figures are kept"):
        sweep_report(survey(tmp_path), Shown(layers=True))

from __future__ import annotations

import csv
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf import METHODS
from mpt_bihalf.__main__ import main
from mpt_bihalf.endings import run_command
from mpt_bihalf.training import loop

Sweep = Callable[..., int]

FAST = ["--device", "cpu", "--threads", "1", "--trials", "1"]
# A valid command, so that only the option under test is at fault. A later option overrides an earlier one.
VALID = [*FAST, "--rates", "0.5", "--methods", "mpt-sign", "--epochs", "1"]

NUMBERS = ["", "x", "nan", "inf", "-1", "1.5", "1e3", "½", "--"]

BAD = {
    "--rates": ["0.1..", "..", "0.1..0.9:0", "nan", "1", "-0.1", "", "0.1,,0.5", "1e-400", "0.1..0.9:1e-9", "--", "½"],
    "--models": ["", "conv3", "conv2,", "Conv2", "cönv2", "x" * 5000, "conv2\nconv4"],
    "--methods": ["", "mpt", "mpt-sign,", "MPT-SIGN", "\u202e", "--"],
    "--data": ["mnist", "folder:", "folder:/nonexistent", "folder:/dev/null", "folder:a\0b", "digits ", "dïgits", "--"],
    "--image-size": [*NUMBERS, "7", "1", "1000000", "9" * 30],
    "--epochs": [*NUMBERS, "0"],
    "--trials": [*NUMBERS, "0"],
    "--seed": [*NUMBERS, str(2**63), "9" * 30],
    "--scope": ["", "network", "layer,filter"],
    "--skip": ["", "nothing", "first,,last", "0,2,6,8,10", "ü"],
    "--device": ["", "gpu", "cuda:99", "meta", "hpu", "cpu:x", "--"],
    "--threads": [*NUMBERS, "9" * 30],
    "--grid": ["", "lr", "lr=", "=1", "lr=x", "lr=nan", "lr=1e999", "foo=1", "seed=1", "batch_size=2000", "lr=0.1,",
               "holdout=1", "holdout=1e-9", "holdout=0.99999", "schedule=step", "init=keep", "precision=fp8",
               "processes=2", "ü=1"],
    "--recipe": ["", "fast", "Paper"],
    "--colour": ["red"],
    "--rate": ["0.5"],
}  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def assert_one_line(err: str) -> None:
    assert err.startswith("error: "), err
    assert err.endswith("\n")
    assert err.count("\n") == 1, err


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*arguments: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(loop, "train_step", begun)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in BAD.items() for value in values])
def test_a_bad_option_ends_in_one_line_and_changes_nothing(
    option: str, value: str, tmp_path: Path, cache_folder: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data_root = ["--data-root", str(tmp_path / "data")]
    for exists in (False, True):
        if exists:
            out.mkdir()
            (out / "results.csv").write_text("old\n")
        before = snapshot(tmp_path)
        status = sweep(*VALID, *data_root, "--out", str(out), f"{option}={value}")
        assert_one_line(capsys.readouterr().err)
        assert status == 2
        assert snapshot(tmp_path) == before
        assert not cache_folder.exists()


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    "place", ["file", "file/below", "/proc/nowhere", "/dev/null/x", "a\0b", "n" * 300, "d/" * 3000]
)
def test_an_output_folder_that_cannot_be_made_ends_in_one_line(
    place: str, tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    assert sweep(*VALID, "--out", place) == 2
    assert_one_line(capsys.readouterr().err)
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("no_training")
def test_an_empty_output_folder_is_refused(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep(*VALID, "--out", "") == 2
    assert_one_line(capsys.readouterr().err)
    assert snapshot(tmp_path) == {}


def test_a_folder_name_that_is_no_utf8_works_or_changes_nothing(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / os.fsdecode(b"\xff")
    status = sweep(*VALID, "--out", str(out))
    assert (out / "results.csv").exists() if status == 0 else not out.exists()


@pytest.mark.usefixtures("no_training")
def test_a_data_root_that_is_no_folder_ends_in_one_line(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    for root in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "new"):
        status = sweep(*VALID, "--data", "cifar10", "--data-root", str(root), "--out", str(tmp_path / "out"))
        assert_one_line(capsys.readouterr().err)
        assert status == 2
        assert snapshot(tmp_path) == before, root


@pytest.mark.usefixtures("no_training")
def test_one_bad_run_among_many_is_told_before_any_begins(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    for bad in (
        ["--models", "conv4", "conv8"],
        ["--grid", "batch_size=64,2000"],
        ["--scope", "global", "--rates", "0.9999999"],
    ):
        assert sweep(*VALID, *bad, "--out", str(tmp_path / "out")) == 2
        assert_one_line(capsys.readouterr().err)
        assert snapshot(tmp_path) == {}


def test_errors_of_the_process_itself_are_one_line(command: list[str], tmp_path: Path) -> None:
    many = ["--threads", "100000000"]  # more than a process can have
    for bad in (["--rates", "0.1.."], many):
        ended = subprocess.run(
            [*command, *VALID, *bad, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 2, ended.stderr
        assert_one_line(ended.stderr)
        assert ended.stdout == ""
        assert not (tmp_path / "out").exists()


def test_a_sweep_leaves_results_table_and_figure_and_says_where(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    methods = ["--methods", "mpt-sign", "sign"]
    assert sweep(*VALID, *methods, "--rates", "0.3,0.5", "--out", str(out)) == 0
    told = capsys.readouterr().out
    for name in ("results.csv", "prune_sweep.png", "prune_sweep.pdf", "runs"):
        assert (out / name).exists()
        assert str(out / name) in told
    assert (out / "table.txt").read_text().strip() in told
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["prune_rate"]) for row in rows] == [
        ("mpt-sign", "0.3"),
        ("mpt-sign", "0.5"),
        ("sign", "0.0"),
    ]
    assert "logits" not in told and "note" not in rows[0]
    assert sorted(row["run"] for row in rows) == sorted(folder.name for folder in (out / "runs").iterdir())

    results = (out / "results.csv").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    (gone,) = (out / "runs").glob("*pruned0.3*")
    for file in gone.iterdir():
        file.unlink()
    gone.rmdir()
    (out / "results.csv").unlink()
    assert sweep(*VALID, *methods, "--rates", "0.3,0.5", "--out", str(out)) == 0
    assert (out / "results.csv").read_bytes() == results
    for path, time in times.items():
        if path.is_file() and path.parent != gone:
            assert path.stat().st_mtime_ns == time, path
    assert (gone / "result.json").exists()


def test_broken_files_in_the_output_folder_are_done_again_or_told(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sweep(*VALID, "--out", str(out)) == 0
    (run,) = (out / "runs").iterdir()
    results = (out / "results.csv").read_bytes()

    for garbage in (b"", b"{", b"\xff\xfe\0", b"[]"):
        for name in ("result.json", "config.json", "metrics.csv"):
            (run / name).write_bytes(garbage)
        assert sweep(*VALID, "--out", str(out)) == 0
        assert (out / "results.csv").read_bytes() == results

    (run / "result.json").unlink()
    (run / "checkpoint.pt").write_bytes(b"garbage")
    (run / "config.json").write_bytes(b"garbage")
    assert sweep(*VALID, "--out", str(out)) == 0
    assert (out / "results.csv").read_bytes() == results

    for name in ("config.json", "result.json"):
        (run / "result.json").unlink(missing_ok=True)
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()
        capsys.readouterr()
        assert sweep(*VALID, "--out", str(out)) == 1
        damaged = f"{run.name}: result.json is damaged\n" * (name == "result.json")
        told = capsys.readouterr().err
        assert told.startswith(damaged)
        assert_one_line(told.removeprefix(damaged))
        assert (out / "results.csv").read_bytes() == results
        (run / name).rmdir()


def test_a_network_that_looks_at_no_image_is_named(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "the network gives the same logits for every test image"
    rates = ["--rates", "0.999,0.5", "--epochs", "1"]
    for told_of_run in (1, 0):  # the second time all is done already
        assert sweep(*VALID, *rates, "--out", str(tmp_path)) == 0
        told = capsys.readouterr()
        lines = (told.out + told.err).splitlines()
        (name,) = (path.parent.name for path in tmp_path.glob("runs/*/result.json") if note in path.read_text())
        assert lines.count(f"{note}: {name}") == 1
        assert sum(line.endswith(f" %; {note}") and f"{name}: test top-1 " in line for line in lines) == told_of_run


def check_kills(
    arguments: list[str],
    delays: list[float],
    tmp_path: Path,
    command: list[str],
    sweep: Sweep,
    kill_in_epoch: Callable[..., Path],
) -> list[Path]:
    """Kill the sweep in the midst of a run for each delay, let it end, and compare it with one left alone."""
    out, whole = tmp_path / "killed", tmp_path / "whole"
    command = [*command, "--engine", "serial"]  # the process that trains is the one that is killed
    killed: set[Path] = set()
    for delay in delays:
        killed.add(kill_in_epoch([*command, *arguments, "--out", str(out)], out, killed, delay))
    assert subprocess.run([*command, *arguments, "--out", str(out)], capture_output=True, check=False).returncode == 0
    assert sweep(*arguments, "--out", str(whole)) == 0
    for name in ("results.csv", "table.txt"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    folders = sorted((whole / "runs").iterdir())
    assert sorted(path.name for path in (out / "runs").iterdir()) == [folder.name for folder in folders]
    for folder in folders:
        resumed = out / "runs" / folder.name
        for name in ("result.json", "metrics.csv", "layers.csv", "config.json"):
            assert (resumed / name).read_bytes() == (folder / name).read_bytes(), (folder.name, name)
        saved, expected = (
            torch.load(place / "checkpoint.pt", weights_only=True)["model"] for place in (resumed, folder)
        )
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[name], expected[name]) for name in expected), folder.name
    return sorted(killed)


def assert_each_epoch_once(folder: Path, epochs: int) -> None:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    assert "top1/test" in tags
    for tag in tags:
        assert [point.step for point in events.Scalars(tag)] == list(range(1, epochs + 1)), tag


def test_a_sweep_killed_in_mid_epoch_ends_as_one_left_alone(
    tmp_path: Path, command: list[str], sweep: Sweep, kill_in_epoch: Callable[..., Path]
) -> None:
    arguments = [*FAST, "--rates", "0.5", "--methods", "mpt-bihalf", "--scope", "global", "--epochs", "4"]
    arguments += ["--grid", "optimizer=sgd,adam", "lr=0.02"]
    killed = check_kills(arguments, [0.0, 0.1], tmp_path, command, sweep, kill_in_epoch)
    for folder in killed:
        assert len(list(folder.glob("events.*"))) == 2
        assert_each_epoch_once(folder, 4)


@pytest.mark.slow
def test_every_method_killed_at_many_moments_ends_as_one_left_alone(
    tmp_path: Path, command: list[str], sweep: Sweep, kill_in_epoch: Callable[..., Path]
) -> None:
    arguments = [*FAST, "--rates", "0.5", "--methods", *METHODS, "--epochs", "8", "--grid", "holdout=0.1"]
    delays = [0.05 * i for i in range(len(METHODS))]
    for folder in check_kills(arguments, delays, tmp_path, command, sweep, kill_in_epoch):
        assert_each_epoch_once(folder, 8)


def test_images_that_change_under_a_sweep_are_refused_and_the_report_tells_both_apart(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for part, label, number in product(("train", "test"), ("dark", "light"), range(6)):
        (images / part / label).mkdir(parents=True, exist_ok=True)
        grey = 20 * number + 128 * (label == "light")
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(images / part / label / f"{number}.gif")
    (images / "train" / ".git").mkdir()
    options = [*VALID, "--data", f"folder:{images}", "--grid", "batch_size=4", "width=0.05", "--out", str(out)]
    assert sweep(*options) == 0
    assert f"left out of {images}: 1 hidden or of a program's own (train/.git)" in capsys.readouterr().err
    assert sweep(*options) == 0 and "1 of 1 runs are done already" in capsys.readouterr().out

    dark, light = images / "test" / "dark", images / "test" / "light"
    dark.rename(images / "aside")
    light.rename(dark)
    (images / "aside").rename(light)
    before = snapshot(out)
    assert sweep(*options) == 2
    told = capsys.readouterr().err
    assert_one_line(told)
    assert "holds other data than" in told and "test images have other contents" in told
    assert snapshot(out) == before

    assert sweep(*options, "--seed", "1") == 0  # a run of its own, on what lies there now
    with (out / "results.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["seed"], second["seed"]) == ("1", "0") and first["data_digest"] != second["data_digest"]
    assert first["data_root"] == first["skip"] == first["milestones"] == "none"
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["mpt_bihalf", "report", str(out)])
    run_command(main)
    told = capsys.readouterr().out
    assert "was 2 different data sets at different times" in told
    assert told.count("images (") >= 2 and "mean ±" not in told

from __future__ import annotations

import csv
import os
import sys
import urllib.request
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ttest_1samp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf import METHODS
from mpt_bihalf.__main__ import main
from mpt_bihalf.endings import run_command
from mpt_bihalf.experiments import prune_sweep
from mpt_bihalf.experiments.prune_sweep import PruneSweep
from mpt_bihalf.training import Run, loop

Sweep = Callable[..., int]
Kill = Callable[..., Path]
Record = dict[str, Any]
Trials = Callable[..., list[Record]]

FAST = ["--device", "cpu", "--threads", "1", "--trials", "1", "--width", "0.25"]
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
    "--scope": ["network", "layer,filter"],
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


def test_a_sweep_leaves_results_table_and_figure_and_says_where(
    tmp_path: Path, sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    methods = ["--methods", "mpt-sign", "sign"]
    assert sweep(*VALID, *methods, "--rates", "0.3,0.5", "--out", str(out)) == 0
    told = capsys.readouterr().out
    assert "\nmeasured: conv2, digits: the best pruned network has " in told and "\npaper:    Conv2/4/6/8 " in told
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
    rates = ["--rates", "0.999,0.5", "--epochs", "1", "--width", "1"]
    for told_of_run in (1, 0):  # the second time all is done already
        assert sweep(*VALID, *rates, "--out", str(tmp_path)) == 0
        told = capsys.readouterr()
        lines = (told.out + told.err).splitlines()
        (name,) = (path.parent.name for path in tmp_path.glob("runs/*/result.json") if note in path.read_text())
        assert lines.count(f"{note}: {name}") == 1
        assert (
            sum(line.endswith(f" %; {note}") and "prune_rate=0.999: test top-1 " in line for line in lines)
            == told_of_run
        )


def check_kills(arguments: list[str], steps: list[int], tmp_path: Path, sweep: Sweep, kill: Kill) -> list[Path]:
    """Kill the sweep at each of these steps of its process, let it end, and compare it with one left alone."""
    out, whole = tmp_path / "killed", tmp_path / "whole"
    killed = {kill(step, out, *arguments) for step in steps}
    assert sweep(*arguments, "--out", str(out)) == sweep(*arguments, "--out", str(whole)) == 0
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


def test_a_sweep_killed_in_mid_epoch_ends_as_one_left_alone(tmp_path: Path, sweep: Sweep, kill: Kill) -> None:
    arguments = [*FAST, "--rates", "0.5", "--methods", "mpt-bihalf", "--scope", "global", "--epochs", "3"]
    arguments += ["--grid", "optimizer=sgd,adam", "lr=0.02"]
    # An epoch has 22 steps: the first run in its second epoch, then, as it goes on from there, the second run likewise.
    killed = check_kills(arguments, [30, 44 + 30], tmp_path, sweep, kill)
    assert len(killed) == 2
    for folder in killed:
        assert len(list(folder.glob("events.*"))) == 2
        assert_each_epoch_once(folder, 3)


@pytest.mark.slow
def test_every_method_killed_at_many_moments_ends_as_one_left_alone(tmp_path: Path, sweep: Sweep, kill: Kill) -> None:
    arguments = [*FAST, "--rates", "0.5", "--methods", *METHODS, "--epochs", "8", "--grid", "holdout=0.1"]
    steps = [25, *(140 + 21 + number for number in range(1, len(METHODS)))]  # 20 an epoch
    killed = check_kills(arguments, steps, tmp_path, sweep, kill)
    assert len(killed) == len(METHODS)
    for folder in killed:
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
    options = [*VALID, "--data", f"folder:{images}", "--grid", "batch_size=4", "--out", str(out)]
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


def runs_with(**options: object) -> list[Run]:
    return PruneSweep(**{"device": "cpu", "threads": 1, **options}).runs()  # type: ignore[arg-type]


def test_a_grid_has_every_combination_once_and_trials_innermost() -> None:
    found = runs_with(rates="0.2,0.4", methods=["mpt-sign", "mpt-bihalf"], models=["conv2", "conv4"], trials=2, seed=7)
    expected = product(["conv2", "conv4"], ["mpt-sign", "mpt-bihalf"], [0.2, 0.4], [7, 8])
    assert [(run.model, run.method, run.prune_rate, run.seed) for run in found] == list(expected)


@pytest.mark.parametrize("method", ["dense", "sign", "bihalf"])
def test_a_method_without_a_mask_runs_once_a_trial_whatever_the_rates(method: str) -> None:
    found = runs_with(rates="0.1..0.9", methods=[method, "mpt-sign"], trials=2)
    assert [(run.prune_rate, run.seed) for run in found if run.method == method] == [(0.0, 0), (0.0, 1)]
    assert len(found) == 2 + 9 * 2


def test_methods_and_models_are_given_with_spaces_or_commas() -> None:
    spaced = runs_with(rates="0.5", methods=["mpt-sign", "sign"], models=["conv2", "conv4"], skip=["first", "last"])
    assert runs_with(rates="0.5", methods=["mpt-sign,sign"], models=["conv2,conv4"], skip=["first,last"]) == spaced


def test_what_is_asked_for_twice_runs_once() -> None:
    assert len(runs_with(rates="0.5,0.5", methods=["mpt-sign", "mpt-sign"], models=["conv2", "conv2"], trials=1)) == 1
    # The sign method has no scope and bihalf no score gradient to vary.
    assert len(runs_with(methods=["sign"], trials=1, grid=["score-gradient=latent,binary", "scope=layer,global"])) == 1


def test_grid_makes_the_product_of_its_fields() -> None:
    found = runs_with(
        rates="0.5", methods=["mpt-sign"], trials=1, grid=["lr=0.1,0.05", "scale=kaiming,l1", "p-pos=0.5"]
    )
    assert [(run.lr, run.scale) for run in found] == [(0.1, "kaiming"), (0.1, "l1"), (0.05, "kaiming"), (0.05, "l1")]


@pytest.mark.parametrize(
    ("entry", "field", "values"),
    [
        ("batch_size=32,16", "batch_size", [32, 16]),
        ("batch-size=32", "batch_size", [32]),
        ("train_affine=true,False", "train_affine", [True, False]),
        ("skip=first+last,none", "skip", [("first", "last"), ()]),
        ("weight_decay=1e-4, 0", "weight_decay", [1e-4, 0.0]),
        ("init=signed_constant", "init", ["signed_constant"]),
        ("epochs=3", "epochs", [3]),
        ("scope=global", "scope", ["global"]),
        ("holdout=0.1", "holdout", [0.1]),
        ("precision=bf16", "precision", ["bf16"]),
        ("augment=auto,standard", "augment", ["auto", "standard"]),
    ],
)
def test_grid_values_have_the_type_of_their_field(entry: str, field: str, values: list[object]) -> None:
    found = runs_with(rates="0.5", methods=["mpt-sign"], trials=1, epochs=9, grid=[entry])
    assert [getattr(run, field) for run in found] == values


def test_grid_gives_the_milestones_of_a_step_schedule() -> None:
    found = runs_with(rates="0.5", methods=["sign"], trials=1, grid=["schedule=step", "milestones=1+2,3"])
    assert [run.milestones for run in found] == [(1, 2), (3,)]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([""], "write field=value"),
        (["lr"], "write field=value"),
        (["lr="], "write field=value"),
        (["=0.1"], "no field ''"),
        (["colour=red"], "no field 'colour'"),
        (["lr=fast"], "'fast' is not a number"),
        (["lr=0.1,,0.2"], "'' is not a number"),
        (["lr=0.1", "lr=0.2"], "given twice"),
        (["batch-size=1", "batch_size=2"], "given twice"),
        (["batch_size=1.5"], "'1.5' is not a whole number"),
        (["train_affine=maybe"], "not true or false"),
        (["milestones=a+b"], "not whole numbers"),
        (["prune_rate=0.5"], "--rates"),
        (["model=conv2"], "--models"),
        (["method=sign"], "--methods"),
        (["seed=1"], "--seed"),
        (["lr=nan"], "lr must be a finite number"),
        (["lr=1e999"], "lr must be a finite number"),
        (["lr=-1"], "lr must be a finite number"),
        (["momentum=1"], "momentum"),
        (["weight_decay=inf"], "weight_decay"),
        (["holdout=1"], "holdout"),
        (["holdout=nan"], "holdout"),
        (["p_pos=2"], "p_pos"),
        (["init=keep"], "unknown init 'keep'"),
        (["precision=fp8"], "unknown precision 'fp8'"),
        (["augment=all"], "unknown augment 'all'; known: auto, none, standard"),
        (["schedule=step"], "--milestones"),
        (["device=gpu"], "'gpu'"),
        (["data=nothing"], "'nothing'"),
        (["epochs=0"], "epochs"),
    ],
)
def test_a_bad_grid_is_refused_by_what_is_wrong_with_it(entries: list[str], told: str) -> None:
    with pytest.raises(ValueError) as error:
        runs_with(grid=entries)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trials": 0}, "trials must lie in 1 to 10,000, not 0"),
        ({"trials": -1}, "trials must lie in 1 to 10,000, not -1"),
        ({"seed": -1}, "seed must lie in 0 to"),
        ({"seed": 2**63 - 1, "trials": 2}, "seed must lie in 0 to"),
        ({"epochs": 0}, "epochs must lie in 1 to 1000000, not 0"),
        ({"image_size": -1}, "image_size must lie in 0 to 1024, not -1"),
        ({"threads": -1}, "threads must lie in 0 to 1024, not -1"),
        ({"methods": [""]}, "unknown method ''"),
        ({"models": [""]}, "unknown model ''"),
        ({"methods": ["mpt"]}, "unknown method 'mpt'"),
        ({"models": ["conv3"]}, "unknown model 'conv3'"),
        ({"data": "mnist"}, "unknown data set 'mnist'"),
        ({"scope": "network"}, "unknown scope 'network'"),
        ({"flip": ""}, "unknown flip ''; known: auto, on, off"),
        ({"device": "gpu"}, "device 'gpu' is not available"),
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError) as error:
        runs_with(**options)
    assert told in str(error.value)


def test_the_runs_are_resolved_so_that_their_names_are_final() -> None:
    for run in PruneSweep(rates="0.5").runs():
        assert run == run.resolved()
        assert (run.device, run.threads) != ("auto", 0)


@pytest.mark.parametrize("name", PruneSweep.recipes)
def test_what_is_given_goes_before_the_recipe(name: str) -> None:
    found = runs_with(
        recipe=name,
        rates="0.3",
        models=["conv2"],
        methods=["mpt-balanced"],
        data="digits",
        epochs=7,
        trials=2,
        seed=5,
        grid=["batch_size=32", "lr=0.5"],
    )
    assert [(r.model, r.method, r.data, r.prune_rate, r.epochs, r.seed, r.batch_size, r.lr) for r in found] == [
        ("conv2", "mpt-balanced", "digits", 0.3, 7, seed, 32, 0.5) for seed in (5, 6)
    ]


def test_an_unknown_recipe_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'papr'; known: quick, paper$"):
        runs_with(recipe="papr")


@pytest.fixture
def swept(trials: Trials) -> list[Record]:
    """bihalf is better at one of two rates, and both are better than what is not pruned."""
    return [
        *trials("mpt-sign", 0.1, [50.0, 52.0, 57.0]),
        *trials("mpt-sign", 0.5, [60.0, 61.0, 62.0]),
        *trials("mpt-bihalf", 0.1, [70.0, 70.5, 77.5]),
        *trials("mpt-bihalf", 0.5, [55.0, None, 56.0]),
        *trials("sign", 0.0, [44.0, 46.0, 51.0]),
    ]


def test_the_finding_counts_the_rates_at_which_a_method_leads_and_compares_with_no_pruning(swept: list[Record]) -> None:
    told = prune_sweep.finding_of(swept)
    gains = [np.subtract([70.0, 70.5, 77.5], [50.0, 52.0, 57.0]), np.subtract([55.0, 56.0], [60.0, 62.0])]
    p = [ttest_1samp(gain, 0).pvalue for gain in gains]
    assert 2 * p[0] < 0.05  # by Holm, of two tests
    mean = np.mean([gain.mean() for gain in gains])
    sure = "1 with p < 0.05 by Holm"
    assert f"mpt-bihalf is above mpt-sign at 1 of 2 rates ({sure}), {mean:+.2f} points on average; " in told
    assert "pruned network has 72.67 % (mpt-bihalf at 10 %), the best unpruned network has 47.00 % (sign); " in told
    assert told.endswith("1 of 15 runs diverged")


def test_the_finding_is_reversed_with_the_records(swept: list[Record]) -> None:
    other = {"mpt-sign": "mpt-bihalf", "mpt-bihalf": "mpt-sign", "sign": "sign"}
    told = prune_sweep.finding_of([record | {"method": other[record["method"]]} for record in swept])
    assert "mpt-bihalf is above mpt-sign at 1 of 2 rates (0 with p < 0.05 by Holm), -" in told
    assert "(mpt-sign at 10 %)" in told


def test_the_finding_says_where_there_is_too_little_to_tell(trials: Trials) -> None:
    one = prune_sweep.finding_of([*trials("mpt-sign", 0.5, [50.0]), *trials("mpt-bihalf", 0.5, [60.0])])
    assert "at 1 of 1 rates, +10.00 points" in one and "one trial each is too little" in one
    lost = prune_sweep.finding_of([*trials("mpt-sign", 0.5, [None]), *trials("mpt-bihalf", 0.5, [60.0])])
    assert "mpt-bihalf has no finished run beside one of mpt-sign" in lost and "1 of 2 runs diverged" in lost
    assert "no run finished" in prune_sweep.finding_of(trials("sign", 0.0, [None]))


def test_each_setting_that_was_varied_has_its_own_finding(trials: Trials) -> None:
    records = [
        record
        for lr, best in ((0.1, "mpt-sign"), (0.2, "mpt-bihalf"))
        for method in ("mpt-sign", "mpt-bihalf")
        for record in trials(method, 0.5, [80.0 + (method == best), 81.0 + (method == best)], lr=lr)
    ]
    first, second = prune_sweep.finding_of(records).split(" | ")
    assert first.startswith("conv2, digits, lr 0.1: mpt-bihalf is above mpt-sign at 0 of 1")
    assert second.startswith("conv2, digits, lr 0.2: mpt-bihalf is above mpt-sign at 1 of 1")


def test_a_fixed_mask_in_the_grid_is_swept_over_the_rates() -> None:
    options: dict[str, Any] = {
        "device": "cpu",
        "threads": 1,
        "trials": 1,
        "rates": "0.5,0.9",
        "methods": ["dense", "mpt-sign"],
    }
    runs = PruneSweep(grid=["mask=snip,random"], **options).runs()
    found = {(run.method, run.mask, run.prune_rate) for run in runs}
    assert found == {
        (m, mask, rate) for m in ("dense", "mpt-sign") for mask in ("snip", "random") for rate in (0.5, 0.9)
    }
    assert {run.prune_rate for run in PruneSweep(**options).runs() if run.method == "dense"} == {0.0}

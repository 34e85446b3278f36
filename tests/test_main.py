from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf import MODELS, kernels
from mpt_bihalf.__main__ import main
from mpt_bihalf.endings import run_command
from mpt_bihalf.models.design import Network
from mpt_bihalf.sweep.claim import claimed
from mpt_bihalf.sweep.plan import write_plan
from mpt_bihalf.training import Run, loop, train
from tests.processes import AT_STEP, Program, wait_for
from tests.reference import Attending

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "mpt_bihalf"]
VALID = ["--device", "cpu", "--threads", "1", "--epochs", "1"]

NAMES = ["", "nothing", "Layer", "ü", "a\nb", "--"]
WHOLE = ["", "x", "nan", "inf", "-1", "1.5", "1e3", "½"]
SHARES = ["", "x", "nan", "inf", "-0.1", "1.5", "½"]

BAD = {
    "--method": NAMES,
    "--model": [*NAMES, "conv3", "conv4,conv2", "conv8"],
    "--data": [*NAMES, "folder:", "folder:/nonexistent", "folder:/dev/null", "folder:a\0b"],
    "--image-size": [*WHOLE, "7", "1000000", "9" * 30],
    "--data-digest": ["x", "0" * 63, "A" * 64],
    "--augment": ["", "nothing", "flip"],
    "--flip": ["", "nothing", "true"],
    "--crop-padding": ["", "nothing", "4"],
    "--prune-rate": [*SHARES, "1", "1.0"],
    "--p-pos": SHARES,
    "--mask": [*NAMES[1:], "snip,grasp", "edge-popup"],
    "--imp-share": [*SHARES, "0"],
    "--imp-criterion": NAMES,
    "--rewind": ["nothing", "5", "-5it", "1.5ep", "11ep", "ü"],
    "--imp-control": NAMES[1:],
    "--augmix-severity": ["", "x", "nan", "inf", "0.9", "11"],
    "--gaussian-std": ["", "x", "nan", "inf", "-1"],
    "--gaussian-clean": SHARES,
    "--jsd": ["maybe", "2"],
    "--nesterov": ["maybe", "2"],
    "--warmup": [*WHOLE, "1", "9" * 30],
    "--redraw": [*NAMES[1:], "iterand", "recycle"],  # whose steps and epochs a short run has not
    "--redraw-every": [*WHOLE, "9" * 30],
    "--redraw-share": SHARES,
    "--scope": NAMES[1:],
    "--block": [*NAMES[1:], "norm-first", "bi-real"],
    "--output-scale": [*NAMES[1:], "gamma-1", "gamma-5"],
    "--input-scale": ["maybe", "true"],
    "--penalty": [*NAMES[1:], "r1"],
    "--penalty-lambda": ["", "x", "nan", "inf", "-1", "0.5"],
    "--centre": ["maybe", "true"],
    "--clip-weights": ["maybe", "true"],
    "--rotation-gradient": [*NAMES, "code"],
    "--skip": ["", "nothing", "ü"],
    "--init": [*NAMES, "keep"],
    "--scale": NAMES[1:],
    "--latent-gradient": NAMES[1:],
    "--learn-mask": ["maybe", "2"],
    "--bop-gamma": SHARES,
    "--bop-tau": ["", "x", "nan", "inf", "-1"],
    "--trace": WHOLE,
    "--score-gradient": NAMES[1:],
    "--train-affine": ["maybe", "2"],
    "--epochs": [*WHOLE, "0"],
    "--batch-size": [*WHOLE, "0", "2000", "9" * 30],
    "--width": ["", "x", "nan", "inf", "-1", "0", "65"],
    "--activations": NAMES,
    "--prune-epochs": [*WHOLE, "-1", "9" * 30],
    "--ede-t0": ["", "x", "nan", "inf", "-1"],
    "--workers": [*WHOLE, "-1", "2000"],
    "--optimizer": NAMES,
    "--lr": ["", "x", "nan", "inf", "-1", "1e999"],
    "--momentum": ["", "x", "nan", "inf", "-1", "1"],
    "--weight-decay": ["", "x", "nan", "inf", "-1"],
    "--schedule": [*NAMES, "step"],
    "--milestones": ["", "x", "1.5", "nan"],
    "--label-smoothing": [*SHARES, "1", "1.0"],
    "--holdout": [*SHARES, "1", "1e-9", "0.99999"],
    "--seed": [*WHOLE, str(2**63)],
    "--device": ["", "gpu", "cuda:99", "meta", "hpu"],
    "--precision": [*NAMES, "fp8"],
    "--threads": [*WHOLE, "9" * 30],
    "--processes": [*WHOLE, "0", "2", "9" * 30],
    "--sync-bn": ["maybe", "2"],
    "--compile": ["maybe", "2"],
    "--graph": ["maybe", "2", "true"],
    "--scale-on": NAMES[1:],
    "--compute": NAMES,
    "--colour": ["red"],
    "--rates": ["0.5"],
    "--prune": ["0.5"],
}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def assert_one_line(err: str) -> None:
    assert err.startswith("error: "), err
    assert err.endswith("\n")
    assert err.count("\n") == 1, err


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, for this process and those it starts."""
    folder = tmp_path_factory.mktemp("cache") / "none-yet"
    monkeypatch.setenv("MPT_BIHALF_CACHE", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the package's command in this process, where no training step may begin; its exit status."""

    def begun(*arguments: Any) -> None:
        raise AssertionError("training began")

    def do(*arguments: str) -> int:
        monkeypatch.setattr(loop, "train_step", begun)
        monkeypatch.setattr(sys, "argv", ["mpt_bihalf", *arguments])
        with pytest.raises(SystemExit) as end:
            run_command(main)
        return int(end.value.code or 0)

    return do


def test_every_option_has_its_bad_input() -> None:
    options = {"--" + name.replace("_", "-") for name in Run.__dataclass_fields__}
    assert options - {"--data-root"} <= set(BAD)


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in BAD.items() for value in values])
def test_a_bad_option_ends_in_one_line_and_changes_nothing(
    option: str,
    value: str,
    tmp_path: Path,
    cache_folder: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old\n")
    before = snapshot(tmp_path)
    places = ["--out", str(tmp_path / "old" / "new"), "--data-root", str(tmp_path / "data")]
    status = command("train", *VALID, *places, f"{option}={value}")
    assert_one_line(capsys.readouterr().err)
    assert status == 2
    assert snapshot(tmp_path) == before
    assert not cache_folder.exists()


def test_where_torch_cannot_compile_nothing_is_begun(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    assert command("train", *VALID, "--compile", "--out", str(tmp_path / "out")) == 2
    assert "torch.compile does not work here (no compiler)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--precision", "bf16"], "compute sparse is in float32 and not compiled"),
        (["--compile"], "compute sparse is in float32 and not compiled"),
        ([], "compute sparse needs a processor with AVX2 and the compiled loops (install again with a C++ compiler)"),
    ],
)
def test_where_sparse_compute_cannot_be_nothing_is_begun(
    options: list[str],
    told: str,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    assert command("train", *VALID, *options, "--compute", "sparse", "--out", str(tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert_one_line(err)
    assert told in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "/dev/null/x", "a\0b", "n" * 300, ""])
def test_an_output_folder_that_cannot_be_made_ends_in_one_line(
    place: str,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    assert command("train", *VALID, "--out", place) == 2
    assert_one_line(capsys.readouterr().err)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("arguments", [[], ["--epochs", "1"], ["fly"], ["train", "stray"], [""]])
def test_a_command_that_is_none_ends_in_one_line(
    arguments: list[str], command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 2
    assert_one_line(capsys.readouterr().err)


RECORDS = ("result.json", "metrics.csv", "layers.csv", "trace.csv", "config.json")
SETTINGS: dict[str, dict[str, Any]] = {
    "mpt-sign": {"method": "mpt-sign", "holdout": 0.1},
    "dense": {"method": "dense", "holdout": 0.1},
    "mpt-bihalf": {"method": "mpt-bihalf", "trace": 7},
    "bihalf-adam": {"method": "bihalf", "optimizer": "adam", "lr": 0.001},
    "bop": {"method": "bop", "bop_gamma": 1e-3, "bop_tau": 1e-5, "trace": 5},
}


class Training:
    """One run by the command line, and the same left alone to compare it with."""

    def __init__(self, place: Path, **fields: Any) -> None:
        settings: dict[str, Any] = {"epochs": 3, "batch_size": 32, "lr": 0.05, "device": "cpu", "threads": 1, **fields}
        settings["width"] = 0.25
        options = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        self.run, self.place = Run(**settings).resolved(), place
        self.folder = place / "out" / self.run.name
        self.checkpoint = self.folder / "checkpoint.pt"
        self.command = ["mpt_bihalf", "train", *options, "--out", str(place / "out")]

    def signalled(self, step: int, signum: int) -> tuple[int, str, str]:
        """How the command ends that is sent a signal in this step of its own."""
        return Program(self.place, AT_STEP, str(step), str(int(signum)), *self.command).ended()

    def done(self) -> tuple[int, int]:
        """Epochs, and steps of the one after them, in the checkpoint."""
        content = torch.load(self.checkpoint, weights_only=True)
        return len(content["history"]["epochs"]), content["step"]

    def end(self) -> str:
        status, out, err = Program(self.place, *self.command).ended()
        assert (status, err) == (0, "")
        return out

    def assert_as_left_alone(self) -> None:
        whole = self.place / "whole"
        train(self.run, whole)
        for name in RECORDS:
            if name != "trace.csv" or self.run.trace:
                assert (self.folder / name).read_bytes() == (whole / name).read_bytes(), name
        saved, expected = (torch.load(at / "checkpoint.pt", weights_only=True)["model"] for at in (self.folder, whole))
        assert all(torch.equal(saved[name], expected[name]) for name in expected)
        events = EventAccumulator(str(self.folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            assert [point.step for point in events.Scalars(tag)] == [1, 2, 3], tag


def test_a_run_killed_in_mid_epoch_ends_as_one_left_alone(tmp_path: Path) -> None:
    training = Training(tmp_path, **SETTINGS["mpt-sign"])  # of 40 steps an epoch
    assert training.signalled(60, signal.SIGKILL) == (-signal.SIGKILL, "", "")
    assert not (training.folder / "result.json").exists()
    assert training.done() == (1, 0)
    stdout = training.end()
    assert json.loads((training.folder / "times.json").read_text())["from_epoch"] == 1
    assert (training.folder / "result.json").read_text() in stdout
    assert str(training.folder) in stdout
    training.assert_as_left_alone()


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_stops_at_once_and_loses_nothing(
    signum: signal.Signals, setting: str, tmp_path: Path
) -> None:
    training = Training(tmp_path, **SETTINGS[setting])
    an_epoch = 40 if "holdout" in SETTINGS[setting] else 44
    told = "interrupted: the same command goes on from here\n"
    assert training.signalled(60, signum) == (128 + signum, "", told)
    assert not (training.folder / "result.json").exists()
    assert training.done() == (1, 60 - an_epoch)

    # Killed while it goes on, before and after its next checkpoint, it goes on from the last one.
    before = training.checkpoint.read_bytes()
    assert training.signalled(5, signal.SIGKILL)[0] == -signal.SIGKILL
    assert training.checkpoint.read_bytes() == before
    assert training.signalled(an_epoch, signal.SIGKILL)[0] == -signal.SIGKILL
    assert training.done() == (2, 0)
    training.end()
    training.assert_as_left_alone()


def test_a_bad_option_of_a_real_process_ends_in_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "train", "--lr", "nan"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert_one_line(ended.stderr)
    assert snapshot(tmp_path) == {}


def test_arrows_to_the_left_and_to_the_right_are_told_apart_unless_mirrored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrow = np.zeros((8, 8), np.uint8)
    arrow[3:5, 1:7] = arrow[[2, 5], 2] = arrow[[1, 6], 3] = 255
    for part, (label, pixels) in product(("train", "test"), {"left": arrow, "right": arrow[:, ::-1]}.items()):
        folder = tmp_path / "arrows" / part / label
        folder.mkdir(parents=True)
        for number in range(256 if part == "train" else 16):
            Image.fromarray(pixels).save(folder / f"{number}.png")

    def trained(*options: str) -> dict[str, Any]:
        data = [
            "--data",
            f"folder:{tmp_path / 'arrows'}",
            "--method",
            "bihalf",
            "--width",
            "0.25",
            "--batch-size",
            "32",
        ]
        monkeypatch.setattr(
            sys, "argv", ["mpt_bihalf", "train", *VALID, *data, "--out", str(tmp_path / "out"), *options]
        )
        main()
        result: dict[str, Any] = json.JSONDecoder().raw_decode(capsys.readouterr().out)[0]
        return result

    # Mirrored half the time, an image says nothing about its label: whatever the network is, each hit is a fair coin's.
    # Of 512 tosses the share of heads has a standard deviation of 2.2 %.
    assert abs(trained()["train_top1"] - 50) < 4 * 2.2
    for options in (["--flip", "off"], ["--augment", "none"]):
        result = trained(*options)
        assert result["train_top1"] > 50 + 9 * 2.2 and result["test_top1"] == 100


def test_what_stays_real_in_the_network_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "attending", Network(lambda design: Attending(design.in_channels), ("first", "last")))
    for method, told in (("dense", ""), ("mpt-sign", "attention.in_proj_weight, 28.2 % of the parameters")):
        options = ["--model", "attending", "--method", method, "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["mpt_bihalf", "train", *VALID, *options])
        main()
        assert capfd.readouterr().err == (told and f"attending: stay real-valued: {told}\n")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the package's command in this process, to a good end without a warning; what it prints."""

    def do(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mpt_bihalf", *arguments])
        run_command(main)
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return do


def test_status_and_report_of_a_real_sweep(
    tmp_path: Path, told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(method="mpt-sign", epochs=2, width=0.1, device="cpu", threads=1).resolved()
    write_plan(tmp_path, [run, replace(run, seed=1)], ["python", "sweep.py"])
    train(run, tmp_path / "runs" / run.name)
    top1 = json.loads((tmp_path / "runs" / run.name / "result.json").read_text())["test_top1"]
    assert "1 done, 1 missing" in told("status", str(tmp_path))
    assert json.loads(told("status", ".", "--json"))["to_do"] == [{"command": ["python", "sweep.py"], "runs": 1}]
    assert f"{top1:.2f} (1 of 2)" in told("report", ".", "--where", "method=mpt-sign", "--x", "prune_rate")
    assert (tmp_path / "report" / "test_top1.pdf").exists()


def test_status_is_drawn_again_until_the_sweep_is_done(tmp_path: Path) -> None:
    run = Run(method="mpt-sign", epochs=1, width=0.1, device="cpu", threads=1).resolved()
    write_plan(tmp_path, [run])
    watching = Program(tmp_path, "mpt_bihalf", "status", str(tmp_path), "--watch", "0.1")
    wait_for(lambda: "0 done, 1 missing" in watching.out.read_text())
    train(run, tmp_path / "runs" / run.name)
    status, out, _ = watching.ended()
    assert status == 0 and "1 done (of 1)" in out


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_looking_and_termination_is_told(tmp_path: Path, signum: int, status: int) -> None:
    write_plan(tmp_path, [Run(method="mpt-sign", epochs=1, device="cpu", threads=1).resolved()])
    watching = Program(tmp_path, "mpt_bihalf", "status", str(tmp_path), "--watch")
    wait_for(lambda: "missing" in watching.out.read_text())
    os.kill(watching.process.pid, signum)
    assert watching.ended()[0] == status


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "nothing"],
        ["status", "file"],
        ["status", "."],
        ["status", "sweep", "--watch", "0"],
        ["status", "sweep", "--watch", "x"],
        ["status", "sweep", "--watch", "--json"],
        ["report", "nothing"],
        ["report", "sweep", "--by", "colour"],
        ["report", "sweep", "--figure", "speed"],
        ["report", "sweep", "--where", "model=conv8"],
        ["report", "sweep", "--to", "file"],
    ],
)
def test_a_sweep_that_cannot_be_shown_ends_in_one_line(
    arguments: list[str],
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    run = Run(device="cpu", threads=1).resolved()
    folder = tmp_path / "sweep" / "runs" / run.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(run)))
    (folder / "result.json").write_text(json.dumps({"status": "diverged: NaN in layer '0' in epoch 1"}))
    before = snapshot(tmp_path)
    assert command(*arguments) == 2
    assert_one_line(capsys.readouterr().err)
    assert snapshot(tmp_path) == before


def test_a_run_that_another_process_does_is_left_to_it(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(epochs=1, device="cpu", threads=1).resolved()
    with claimed(tmp_path / run.name):
        assert command("train", *VALID, "--out", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"error: another process is doing this run: {tmp_path / run.name}\n"

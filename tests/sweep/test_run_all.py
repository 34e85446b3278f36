from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpt_bihalf import MODELS
from mpt_bihalf.models.design import Network
from mpt_bihalf.report import sweep_table
from mpt_bihalf.sums import SUMS
from mpt_bihalf.sweep import EngineOptions, RunsFailed, read_records, run_all, work
from mpt_bihalf.sweep.claim import claimed
from mpt_bihalf.sweep.plan import find_plans, planned_runs
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run, train
from mpt_bihalf.training.recorded_data import DATA, OtherData
from mpt_bihalf.training.run_data import load_run_data
from tests.processes import PROCESSES, wait_for
from tests.reference import Attending

Runs = Callable[..., list[Run]]
SERIAL = EngineOptions(engine="serial")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are trained, in this process."""
    done: list[Run] = []
    train = work.train

    def note(run: Run, *others: Any) -> dict[str, Any]:
        done.append(run)
        return train(run, *others)

    monkeypatch.setattr(work, "train", note)
    return done


def test_runs_are_done_in_order(tmp_path: Path, trained: list[Run], runs: Runs) -> None:
    wanted = runs(methods=["mpt-sign", "sign"])
    run_all(wanted, tmp_path, SERIAL)
    assert trained == wanted
    assert [record["status"] for record in read_records(tmp_path, wanted)] == ["finished"] * 4


def test_only_what_is_missing_is_done(tmp_path: Path, trained: list[Run], runs: Runs) -> None:
    wanted = runs(methods=["mpt-sign", "sign"])
    run_all(wanted, tmp_path, SERIAL)
    before = read_records(tmp_path, wanted)
    trained.clear()
    run_all(wanted, tmp_path, SERIAL)
    assert trained == []
    for file in run_folder(tmp_path, wanted[2]).iterdir():
        file.unlink()
    run_folder(tmp_path, wanted[2]).rmdir()
    (run_folder(tmp_path, wanted[0]) / "result.json").write_text("{")
    run_all(wanted, tmp_path, SERIAL)
    assert trained == [wanted[0], wanted[2]]
    assert read_records(tmp_path, wanted) == before


def test_a_wider_sweep_does_what_is_new(tmp_path: Path, trained: list[Run], runs: Runs) -> None:
    run_all(runs(methods=["mpt-sign"], trials=1), tmp_path, SERIAL)
    trained.clear()
    run_all(runs(methods=["mpt-sign"], rates="0.3,0.5", trials=1), tmp_path, SERIAL)
    assert [run.prune_rate for run in trained] == [0.3]


def test_a_run_that_diverges_does_not_stop_the_sweep_and_is_not_done_again(
    tmp_path: Path, trained: list[Run], runs: Runs
) -> None:
    wanted = runs(methods=["sign"], trials=1, grid=["lr=1e38,0.1", "weight_decay=10"])
    run_all(wanted, tmp_path, SERIAL)
    records = read_records(tmp_path, wanted)
    assert records[0]["status"] == "diverged: NaN in layer '0' in epoch 1"
    assert records[1]["status"] == "finished"
    assert "diverged" in sweep_table(records)
    trained.clear()
    run_all(wanted, tmp_path, SERIAL)
    assert trained == []


@pytest.mark.parametrize(
    "bad",
    [{"model": "conv8"}, {"batch_size": 1500}, {"skip": ("nothing",)}, {"scope": "global", "prune_rate": 0.9999999}],
)
def test_a_run_that_cannot_be_is_told_before_any_is_done(
    bad: dict[str, Any], tmp_path: Path, trained: list[Run], runs: Runs
) -> None:
    good = runs(methods=["mpt-sign"], trials=1)
    with pytest.raises(ValueError):
        run_all([*good, replace(good[0], **bad)], tmp_path / "out", SERIAL)
    assert trained == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_a_sweep_is_the_run_alone(tmp_path: Path, trained: list[Run], runs: Runs) -> None:
    several = runs(methods=["mpt-sign", "mpt-bihalf"], trials=1)
    run_all(several, tmp_path / "a", SERIAL)
    run_all(several[1:], tmp_path / "b", SERIAL)
    results = [json.loads((run_folder(tmp_path / out, several[1]) / "result.json").read_text()) for out in "ab"]
    assert results[0] == results[1]


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path: Path, runs: Runs) -> None:
    wanted = runs(methods=["sign"], trials=3)
    folder = run_folder(tmp_path, wanted[1])
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    with pytest.raises(RunsFailed, match=rf"1 of 3 runs failed, the first, {wanted[1].name}, by: .*File exists"):
        run_all(wanted, tmp_path, SERIAL)
    assert [record["seed"] for record in read_records(tmp_path, wanted)] == [0, 2]
    folder.unlink()
    run_all(wanted, tmp_path, SERIAL)
    run_all(wanted, tmp_path / "untroubled", SERIAL)
    assert read_records(tmp_path, wanted) == read_records(tmp_path / "untroubled", wanted)


def test_what_a_sweep_set_out_to_do_is_kept(tmp_path: Path, runs: Runs) -> None:
    wanted = runs(methods=["sign"])
    run_all(wanted, tmp_path, SERIAL)
    assert planned_runs(find_plans(tmp_path)) == wanted


def is_done(out: Path, runs: list[Run]) -> bool:
    return all((run_folder(out, run) / "result.json").exists() for run in runs)


def do_the_first_last(runs: list[Run], out: Path, is_claimed: Any) -> None:
    """Claim the first run, and do it once somebody else has done the others."""
    folder = run_folder(out, runs[0])
    with claimed(folder):
        is_claimed.set()
        wait_for(lambda: is_done(out, runs[1:]))
        train(runs[0], folder)


def test_a_run_that_another_sweep_does_is_waited_for(
    tmp_path: Path, runs: Runs, trained: list[Run], begin: Callable[..., BaseProcess]
) -> None:
    wanted, is_claimed = runs(methods=["sign"], trials=3), PROCESSES.Event()
    other = begin(do_the_first_last, wanted, tmp_path, is_claimed)
    assert is_claimed.wait(60)
    run_all(wanted, tmp_path, SERIAL)
    assert trained == wanted[1:]
    other.join()
    assert other.exitcode == 0
    assert len(read_records(tmp_path, wanted)) == 3


def claim(run: Run, out: Path, is_claimed: Any) -> None:
    with claimed(run_folder(out, run)):
        is_claimed.set()
        time.sleep(600)


def test_a_run_is_taken_over_from_a_sweep_that_is_killed(
    tmp_path: Path, runs: Runs, trained: list[Run], begin: Callable[..., BaseProcess]
) -> None:
    wanted, is_claimed = runs(methods=["sign"]), PROCESSES.Event()
    other = begin(claim, wanted[0], tmp_path, is_claimed)
    assert is_claimed.wait(60)

    def kill() -> None:
        wait_for(lambda: is_done(tmp_path, wanted[1:]))
        other.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    run_all(wanted, tmp_path, SERIAL)
    killer.join()
    assert trained == [wanted[1], wanted[0]]


def sweep(runs: list[Run], out: Path, options: EngineOptions, told: Path) -> None:
    with told.open("w") as file, redirect_stdout(file):
        run_all(runs, out, options)


@pytest.mark.parametrize("options", [SERIAL, pytest.param(EngineOptions(jobs=2), marks=pytest.mark.slow)])
def test_of_two_sweeps_started_together_each_run_is_done_by_one(
    options: EngineOptions, tmp_path: Path, runs: Runs, begin: Callable[..., BaseProcess]
) -> None:
    wanted, out = runs(methods=["sign", "mpt-bihalf"], trials=4), tmp_path / "out"
    told = [tmp_path / "one", tmp_path / "other"]
    together = [begin(sweep, wanted, out, options, file) for file in told]
    for process in together:
        process.join()
    assert [process.exitcode for process in together] == [0, 0]
    for run in wanted:
        assert len(list(run_folder(out, run).glob("events.*"))) == 1, run.name
        # One that starts late finds some that are done, and only counts them.
        label = f"{run.method} seed={run.seed}: "
        assert all(label in text or "are done already" in text for text in (file.read_text() for file in told))
    run_all(wanted, tmp_path / "alone", SERIAL)
    assert read_records(out, wanted) == read_records(tmp_path / "alone", wanted)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two classes, eight images of 8x8 to train and four to test of each."""
    root, random = tmp_path / "images", np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(128 * label, 128 * label + 128, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture
def on_images(images: Path, runs: Runs) -> Runs:
    """Short runs on the folder of images."""
    settings = {"methods": ["sign"], "data": f"folder:{images}", "grid": ["batch_size=8", "width=0.05"]}
    return lambda **options: runs(**{**settings, **options})


def swap_test_labels(images: Path) -> None:
    dark, light = images / "test" / "dark", images / "test" / "light"
    dark.rename(images / "aside")
    light.rename(dark)
    (images / "aside").rename(light)


def replace_an_image(images: Path) -> None:
    shutil.copyfile(images / "train" / "light" / "0.png", images / "train" / "dark" / "0.png")


def remove_an_image(images: Path) -> None:
    (images / "train" / "dark" / "7.png").unlink()


def add_a_class(images: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(images / part / "light", images / part / "white")


CHANGES = {
    swap_test_labels: "test images have other",
    replace_an_image: "training images have other",
    remove_an_image: "there are 15 training images, not 16",
    add_a_class: "class 'white' is new",
}


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and the time of each file of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("state", ["done", "half done", "mixed"])
@pytest.mark.parametrize("change", CHANGES)
def test_other_data_than_a_run_saw_are_refused_before_anything_is_written(
    change: Callable[[Path], None], state: str, tmp_path: Path, images: Path, on_images: Runs, trained: list[Run]
) -> None:
    out, wanted = tmp_path / "out", on_images()
    run_all(wanted[:1] if state == "mixed" else wanted, out, SERIAL)
    if state == "half done":
        for run in wanted:
            (run_folder(out, run) / "result.json").unlink()
    change(images)
    before = files_of(out)
    trained.clear()
    with pytest.raises(OtherData) as fault:
        run_all(wanted, out, SERIAL)
    assert CHANGES[change] in str(fault.value) and "\n" not in str(fault.value)
    assert f"folder:{images} holds other data than {run_folder(out, wanted[0])} was trained on" in str(fault.value)
    assert files_of(out) == before and trained == []


def test_the_same_data_written_anew_are_no_others(
    tmp_path: Path, images: Path, on_images: Runs, trained: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = on_images()
    run_all(wanted[:1], tmp_path / "out", SERIAL)
    shutil.move(images, tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", images)
    run_all(wanted, tmp_path / "out", SERIAL)
    assert trained == wanted
    assert len({row["data_digest"] for row in read_records(tmp_path / "out", wanted)}) == 1
    assert capsys.readouterr().err == ""


def test_each_run_is_told_the_digest_that_its_data_must_have(
    tmp_path: Path, on_images: Runs, trained: list[Run]
) -> None:
    run_all(on_images(), tmp_path / "out", SERIAL)
    assert {run.data_digest for run in trained} == {load_run_data(trained[0]).digest.sha256}


def test_a_worker_that_sees_other_data_fails_its_run_with_the_reason(
    tmp_path: Path, on_images: Runs, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = on_images(trials=1)
    kept_data = work.kept_data

    def elsewhere(run: Run) -> Any:
        replace_an_image(images)
        return kept_data(run)

    monkeypatch.setattr(work, "kept_data", elsewhere)
    with pytest.raises(RunsFailed, match=r"1 of 1 runs failed, .* holds other data than asked for: SHA-256 "):
        run_all(wanted, tmp_path / "out", SERIAL)
    assert not (run_folder(tmp_path / "out", wanted[0]) / "checkpoint.pt").exists()


def test_done_runs_do_without_their_data(
    tmp_path: Path, images: Path, on_images: Runs, trained: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    out, wanted = tmp_path / "out", on_images()
    run_all(wanted, out, SERIAL)
    shutil.rmtree(images)
    before = files_of(out)
    capsys.readouterr()
    run_all(wanted, out, SERIAL)
    assert capsys.readouterr() == (
        "2 of 2 runs are done already\n",
        f"folder:{images} is not there: what its runs came to is shown, and their data are not compared\n",
    )
    assert files_of(out) == before
    with pytest.raises(ValueError, match="cannot read"):
        run_all(on_images(trials=3), out, SERIAL)
    assert files_of(out) == before and len(trained) == 2


def test_what_is_left_out_of_the_images_is_told_once(
    tmp_path: Path, images: Path, on_images: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "train" / "dark" / "notes.txt").write_text("x")
    run_all(on_images(), tmp_path / "out", SERIAL)
    told = f"left out of {images}: 1 file of no image format that Pillow reads (.txt 1)\n"
    assert capsys.readouterr().err.count(told) == 1
    run_all(on_images(), tmp_path / "out", SERIAL)
    assert capsys.readouterr().err == told


def test_what_stays_real_is_told_once_a_network_and_not_of_dense_ones(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "attending", Network(lambda design: Attending(design.in_channels), ("first", "last")))
    told = "attending: stay real-valued: attention.in_proj_weight, 28.2 % of the parameters"  # 48 of 170
    for methods, count in ((["dense"], 0), (["dense", "sign", "mpt-sign"], 1)):
        run_all(runs(models=["attending"], methods=methods), tmp_path, SERIAL)
        lines = capfd.readouterr().err.splitlines()
        assert sum("real" in line or "arning" in line for line in lines) == lines.count(told) == count


def test_done_runs_that_do_not_tell_their_data_are_counted(
    tmp_path: Path, runs: Runs, trained: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = runs(methods=["sign"], trials=3)
    run_all(wanted, tmp_path, SERIAL)
    (run_folder(tmp_path, wanted[0]) / DATA).unlink()
    (run_folder(tmp_path, wanted[1]) / DATA).write_text("{}")
    capsys.readouterr()
    run_all(wanted, tmp_path, SERIAL)
    assert capsys.readouterr().err.splitlines() == [
        f"{run.name}: data.json was {fault}; made again from its checkpoint"
        for run, fault in zip(wanted, ("missing", "damaged"), strict=False)
    ]
    for run in wanted[:2]:
        (run_folder(tmp_path, run) / SUMS).unlink()
        (run_folder(tmp_path, run) / DATA).unlink()
    run_all(wanted, tmp_path, SERIAL)
    assert capsys.readouterr().err == "2 of 3 done runs are older, or damaged, and do not tell what data they saw\n"
    assert len(trained) == 3


def test_a_checkpoint_tells_of_the_data_where_the_record_does_not_any_more(
    tmp_path: Path, images: Path, on_images: Runs
) -> None:
    run_all(on_images(trials=1), tmp_path / "out", SERIAL)
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    swap_test_labels(images)
    for damaged in (True, False):
        (folder / DATA).write_text("x") if damaged else (folder / DATA).unlink()
        with pytest.raises(OtherData, match="test images have other contents"):
            run_all(on_images(trials=1), tmp_path / "out", SERIAL)


def test_a_sweep_that_asks_for_other_data_is_refused(tmp_path: Path, on_images: Runs) -> None:
    with pytest.raises(OtherData, match=f"holds other data than asked for: SHA-256 .*, not {'a' * 64}"):
        run_all([replace(run, data_digest="a" * 64) for run in on_images(trials=1)], tmp_path / "out", SERIAL)
    assert not (tmp_path / "out").exists()


def test_a_result_stays_where_the_data_to_do_its_run_again_are_gone(
    tmp_path: Path, images: Path, on_images: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(on_images(trials=1), tmp_path / "out", SERIAL)
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    for name in ("layers.csv", "checkpoint.pt"):
        (folder / name).unlink()
    images.rename(tmp_path / "elsewhere")
    run_all(on_images(trials=1), tmp_path / "out", SERIAL, needs=["layers.csv"])
    assert (folder / "result.json").exists()
    assert "layers.csv is missing, and cannot be made again" in capsys.readouterr().err

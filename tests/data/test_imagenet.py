from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mpt_bihalf.data import DataError, Dataset, evaluation_batches, load_dataset, own_augmentation, training_batches
from mpt_bihalf.data.batches import _draws
from mpt_bihalf.training import Run
from tests.processes import AT_STEP, Program, is_over, wait_for

CLASSES = ("bird", "cat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's shape: 36 and 15 images of several sizes, kinds and formats, in three classes of a colour each."""
    root = tmp_path_factory.mktemp("imagenet")
    chance = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 5)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                height, width = chance.integers(20, 90, 2)
                pixels = chance.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[:, :, label] += 130
                image = Image.fromarray(pixels)
                kind = {3: "L", 4: "CMYK"}.get(number, "RGB")
                image.convert(kind).save(root / part / name / f"{number:03}.{'png' if number == 5 else 'jpg'}")
    return root


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    found = load_dataset(f"imagenet:{folder}", image_size=16)
    assert isinstance(found, Dataset)
    return found


def all_of(batches: object) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*batches, strict=True)  # type: ignore[call-overload]
    return torch.cat(x), torch.cat(y)


def standardised(pixels: torch.Tensor) -> torch.Tensor:
    return v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(pixels.float() / 255)


def test_test_images_are_those_of_torchvisions_standard_crop(folder: Path, dataset: Dataset) -> None:
    transform = v2.Compose([v2.Resize(18), v2.CenterCrop(16), v2.PILToTensor()])  # 16 / 224 * 256 = 18.3
    expected = ImageFolder(str(folder / "val"), transform)
    x, y = all_of(evaluation_batches(dataset.test, dataset, 4))
    torch.testing.assert_close(x, standardised(torch.stack([image for image, _ in expected])), atol=1e-5, rtol=0)
    assert y.tolist() == [label for _, label in expected]
    assert (dataset.classes, dataset.num_classes, dataset.in_channels, dataset.image_size) == (CLASSES, 3, 3, 16)


def test_the_crop_is_224_unless_told_otherwise(folder: Path) -> None:
    found = load_dataset(f"imagenet:{folder}")
    x, _ = next(evaluation_batches(found.test, found, 2))
    assert x.shape == (2, 3, 224, 224) and x.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_has_each_image_once_cropped_and_mirrored_by_chance(dataset: Dataset) -> None:
    labels = torch.cat([y for _, y in training_batches(dataset, 9, seed=0, epoch=0)])
    assert torch.bincount(labels).tolist() == [12, 12, 12]
    (first, _), (again, _), (other, _), (plain, _) = (
        all_of(training_batches(given, 9, seed=0, epoch=epoch))
        for epoch, given in ((0, dataset), (0, dataset), (1, dataset), (0, dataset.augmented(False, False)))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, plain)


def test_the_random_part_and_the_mirror_can_be_left_out(dataset: Dataset) -> None:
    assert own_augmentation(dataset.name) == (dataset.flip, dataset.random_crop) == (True, True)
    plain = all_of(evaluation_batches(dataset.train, dataset, 12))[0]
    order = _draws(36, 1, seed=0, epoch=0)[0]

    def drawn(**parts: bool) -> torch.Tensor:
        return all_of(training_batches(dataset.augmented(**parts), 12, seed=0, epoch=0))[0]

    assert torch.equal(drawn(flip=False, crop=False), plain[order])
    mirrored = (drawn(crop=False) != plain[order]).flatten(1).any(1)
    assert 0 < mirrored.sum() < 36
    assert torch.equal(drawn(crop=False)[mirrored], plain[order][mirrored].flip(3))
    assert torch.equal(drawn(flip=True, crop=True), drawn())
    assert torch.equal(drawn(flip=False)[~mirrored], drawn()[~mirrored])
    assert torch.equal(drawn(flip=False)[mirrored], drawn()[mirrored].flip(3))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.filterwarnings("error")
def test_any_number_of_workers_gives_the_same_bits_and_draws_no_chance(dataset: Dataset, workers: int) -> None:
    before = torch.random.get_rng_state()
    for none, some in zip(
        training_batches(dataset.decoded_by(0), 8, seed=1, epoch=2),
        training_batches(dataset.decoded_by(workers), 8, seed=1, epoch=2),
        strict=True,
    ):
        assert torch.equal(none[0], some[0]) and torch.equal(none[1], some[1])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_epoch_left_unfinished_keeps_no_program_from_ending(folder: Path) -> None:
    # Each end is that of a process of its own, forked once all is imported.
    program = f"""if True:
        import os, sys
        from mpt_bihalf.data import load_dataset, training_batches
        dataset = load_dataset('imagenet:{folder}', image_size=16).decoded_by(2)
        for end in ("", "raise SystemExit(3)", "batches.close()"):
            if not os.fork():
                batches = training_batches(dataset, 4, seed=0, epoch=0)
                next(batches)
                exec(end)
                break
            print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    """
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=300, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["0", "3", "0"], "")


def test_an_epoch_taken_up_and_its_shares_are_those_of_the_whole(dataset: Dataset) -> None:
    whole = list(training_batches(dataset, 8, seed=1, epoch=0))
    later = list(training_batches(dataset, 8, seed=1, epoch=0, first=2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[2:], later, strict=True))
    shares = [training_batches(dataset, 8, seed=1, epoch=0, share=(rank, 2)) for rank in (0, 1)]
    for (x, y), *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)
    each = [list(evaluation_batches(dataset.test, dataset, 4, share=(rank, 3))) for rank in range(3)]
    assert sorted(len(y) for batches in each for _, y in batches) == [3, 4, 4, 4]


def test_images_held_out_are_those_of_the_in_memory_rule(dataset: Dataset) -> None:
    left, taken = dataset.hold_out(0.25)
    assert (len(left.train), len(taken)) == (27, 9)
    assert set(left.train.files) | set(taken.files) == set(dataset.train.files)
    assert torch.bincount(taken.labels).tolist() == [3, 3, 3]


def test_a_damaged_image_is_told_in_one_line(tmp_path: Path, folder: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        for number in range(4):
            (tmp_path / part / "a" / f"{number}.jpg").write_bytes(
                next((folder / "val" / "cat").glob("*1.jpg")).read_bytes()
            )
    bad = tmp_path / "train" / "a" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:50])
    found = load_dataset(f"imagenet:{tmp_path}", image_size=16)
    with pytest.raises(DataError) as fault:
        list(training_batches(found, 2, seed=0, epoch=0))
    assert str(fault.value).startswith(f"cannot read image {bad} (") and "\n" not in str(fault.value)


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_missing_part_is_told(tmp_path: Path, missing: str) -> None:
    other = {"train": "val", "val": "train"}[missing]
    (tmp_path / other / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / other / "a" / "0.png")
    with pytest.raises(DataError, match="cannot read"):
        load_dataset(f"imagenet:{tmp_path}")
    with pytest.raises(DataError, match=r"cannot read .*imagenet/train"):
        load_dataset("imagenet", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("signum", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_leaves_no_worker_behind_and_ends_as_one_left_alone(
    signum: int, folder: Path, tmp_path: Path
) -> None:
    options = {"data": f"imagenet:{folder}", "image-size": 32, "model": "conv2", "width": 0.125, "epochs": 3}
    options |= {"batch-size": 6, "threads": 1, "workers": 2, "device": "cpu", "trace": 1}
    command = ["mpt_bihalf", "train", *(f"--{name}={value}" for name, value in options.items()), "--out"]
    assert Program(tmp_path, *command, str(tmp_path / "whole")).ended()[0] == 0
    (whole,) = (tmp_path / "whole").glob("*-seed0-*")
    cut = tmp_path / "cut" / whole.name
    # It suspends itself in the midst of its second epoch, of six steps.
    program = Program(tmp_path, AT_STEP, "9", str(int(signal.SIGSTOP)), *command, str(tmp_path / "cut"))
    process = psutil.Process(program.process.pid)
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
    workers = process.children()
    assert workers and len((cut / "metrics.csv").read_text().splitlines()) == 2
    for one in [process, *workers] if signum == signal.SIGINT else [process]:  # as a terminal does
        one.send_signal(signum)
    if signum == signal.SIGINT:
        process.resume()
    status, _, told = program.ended()
    assert status == (130 if signum == signal.SIGINT else -9)
    assert "Traceback" not in told
    wait_for(lambda: all(map(is_over, workers)))
    assert not (cut / "result.json").exists()
    assert Program(tmp_path, *command, str(tmp_path / "cut")).ended()[0] == 0
    for name in ("result.json", "metrics.csv", "layers.csv", "trace.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert json.loads((cut / "result.json").read_text())["epochs"] == 3


def test_the_runs_name_is_readable_and_its_path_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run(data="imagenet:there").data == f"imagenet:{tmp_path / 'there'}"
    assert Run(data="imagenet").data == "imagenet"

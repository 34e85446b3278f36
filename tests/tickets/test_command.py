"""Each command of `python -m mpt_bihalf ticket`, in this process."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from mpt_bihalf import binarize_weights, create_model
from mpt_bihalf.__main__ import main
from mpt_bihalf.data import ImageSet, load_dataset
from mpt_bihalf.endings import run_command
from mpt_bihalf.sweep.records import read_result, read_run
from mpt_bihalf.tickets import Ticket, bench, compile_ticket, load_ticket, read_ticket, save_ticket, write_ticket

Command = Callable[..., str]
NAMES = ("zero", "one", "two", "three")  # by digit; a folder has them by name
ARCHITECTURE: dict[str, Any] = {"name": "conv2", "num_classes": 4, "image_size": 8, "width": 0.25}
MEAN, STD = [0.9, 0.8, 0.7], [0.3, 0.35, 0.4]


@pytest.fixture
def ticket(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command of tickets; what it prints, warnings first. For other exit statuses than 0 the error is given."""

    def do(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["mpt_bihalf", "ticket", *map(str, arguments)])
        code: object = 0
        try:
            run_command(main)
        except SystemExit as end:
            code = end.code
        assert code == status
        printed = capsys.readouterr()
        if status:
            assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
        assert "warning" not in printed.out
        return printed.err if status else printed.err + printed.out

    return do


@pytest.fixture
def made(ticket: Command, finished: Callable[..., Path], tmp_path: Path) -> Path:
    ticket("make", finished(), "-o", tmp_path / "a.ticket", "--note", "ours")
    return tmp_path / "a.ticket"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digits from 0 to 3 as files, 40 to train and 20 to test of each."""
    monkeypatch.setenv("MPT_BIHALF_CACHE", str(tmp_path / "cache"))
    return write_digits(tmp_path / "digits", brightness=1.0)


def write_digits(folder: Path, brightness: float) -> Path:
    digits = load_digits(n_class=len(NAMES))
    for digit, name in enumerate(NAMES):
        for number, pixels in enumerate(digits.images[digits.target == digit][:60]):
            file = folder / ("train" if number < 40 else "test") / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * brightness * 255 / 16).astype("uint8")).convert("RGB").save(file)
    return folder


def tensors(part: Path, classes: tuple[str, ...], mean: list[float], std: list[float]) -> tuple[Tensor, Tensor]:
    """As torchvision reads and standardises the images, and each one's place in these classes."""
    found = ImageFolder(str(part), transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)]))
    places = [classes.index(found.classes[label]) for _, label in found.samples]
    return torch.stack([x for x, _ in found]), torch.tensor(places)


def hits(logits: Tensor, y: Tensor) -> str:
    return f"test top-1 {100 * (logits.argmax(1) == y).double().mean():.2f} %"


@pytest.fixture
def own(folder: Path) -> tuple[nn.Module, str]:
    """A network trained in a loop of one's own, by other statistics than the folder's, and its test top-1."""
    model = binarize_weights(create_model(**ARCHITECTURE, seed=0), "mpt-sign", 0.5, seed=0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    x, y = tensors(folder / "train", NAMES, MEAN, STD)
    for _ in range(8):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    x, y = tensors(folder / "test", NAMES, MEAN, STD)
    return model.eval(), hits(model(x), y)


def test_a_run_becomes_a_ticket_that_scores_as_it_did(
    ticket: Command, made: Path, finished: Callable[..., Path]
) -> None:
    folder = finished()
    result = read_result(folder, read_run(folder))
    assert result is not None
    top1 = f"{result['test_top1']:.2f} %"
    told = ticket("verify", made, "--run", folder, "--data", "digits")
    assert f"top-1 {top1}; its run had {top1} on digits" in told and "to the last bit" in told
    other = finished(seed=1)
    assert "differs" in ticket("verify", made, "--run", other, status=1)


def test_show_tells_what_was_trained_and_where_the_bytes_are(ticket: Command, made: Path) -> None:
    told = ticket("show", made)
    assert "mpt-sign on digits, 90% pruned" in told and "ours" in told
    assert f"by mean {load_digits().images.mean() / 16:.3f}" in told
    assert "\nclasses: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in told
    rows = [re.split(r"  +", line.strip()) for line in told.splitlines()]
    sizes = {row[0]: row for row in rows if len(row) > 3}
    assert int(sizes["all"][3].replace(",", "")) == made.stat().st_size
    assert sizes["6"][2] == "10.0%"
    assert '"classes"' in ticket("show", made, "--json")


def test_show_and_verify_know_of_scales_on_outputs(ticket: Command, tmp_path: Path) -> None:
    architecture = {"name": "conv2", "width": 0.05, "activations": "clip"}
    model = binarize_weights(create_model(**architecture, seed=0), "bihalf", seed=0)
    write_ticket(Ticket.of(model, architecture), tmp_path / "a")
    assert "\nscales: on the outputs of 3, 8, 11, 14\n" in ticket("show", tmp_path / "a")
    assert "conv2 takes all of it" in ticket("verify", tmp_path / "a")


def test_free_text_of_strangers_is_shown_in_plain_lines(ticket: Command, tmp_path: Path) -> None:
    name, text = tmp_path / "a", "\x1b[2Jgone\nresult: 100 %"
    model = binarize_weights(create_model("conv2", 5, width=0.05, seed=0), "bihalf", seed=0)
    images = {"mean": [text] * 3, "std": [text] * 3, "classes": [text, *"abcd"]}
    about = {
        "note": text,
        "images": images,
        "run": {"method": text, "prune_rate": "all"},
        "result": {"test_top1": text},
    }
    write_ticket(Ticket.of(model, {"name": "conv2", "num_classes": 5, "width": 0.05}, about), name)
    told = ticket("show", name)
    write_ticket(replace(Ticket.of(model), about={"run": text, "result": None, "note": 3}), tmp_path / "b")
    assert "note: 3" in ticket("show", tmp_path / "b")
    odd = (tmp_path / "b").rename(tmp_path / "\x1b[2J\x9b")
    assert not {"\x1b", "\x9b"} & {*ticket("compare", odd, odd)}
    assert "\x1b" not in told and "\nresult: 100" not in told and "gone result" in told and "top-1 ? %" in told


def test_a_network_of_ones_own_loop_has_the_loops_accuracy(
    ticket: Command, own: tuple[nn.Module, str], folder: Path, tmp_path: Path
) -> None:
    model, top1 = own
    known: dict[str, Any] = {"mean": MEAN, "std": STD, "classes": NAMES}
    told = {}
    for what, other in {
        "all": {},
        "no statistics": {"mean": None, "std": None},
        "no names": {"classes": None},
        "other names": {"classes": ["\x1b[2J" + "long" * 1000, *NAMES[1:]]},
    }.items():
        save_ticket(model, tmp_path / "a", ARCHITECTURE, **known | other)
        told[what] = ticket("verify", tmp_path / "a", "--data", f"folder:{folder}")
    assert top1 in told["all"] and "warning" not in told["all"]
    assert all(told[what].count("warning: ") == 1 and top1 not in told[what] for what in told if what != "all")
    x, _ = tensors(folder / "train", NAMES, [0.0] * 3, [1.0] * 3)
    assert f"by those of folder:{folder}, mean {x.mean():.4g}" in told["no statistics"]
    assert "no valid class names" in told["no names"]
    assert "by place" in told["other names"] and "\x1b" not in told["other names"]
    assert max(map(len, told["other names"].splitlines())) < 1100


def test_a_runs_ticket_standardises_other_data_as_its_own(
    ticket: Command, finished: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    data = f"folder:{folder}"
    ticket("make", finished(data=data, epochs=3, batch_size=16), "-o", tmp_path / "a")
    x, _ = tensors(folder / "train", NAMES, [0.0] * 3, [1.0] * 3)
    mean, std = x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3), correction=0).tolist()
    dark = write_digits(tmp_path / "dark", brightness=0.2)
    x, y = tensors(dark / "test", tuple(sorted(NAMES)), mean, std)
    told = ticket("verify", tmp_path / "a", "--data", f"folder:{dark}")
    assert hits(load_ticket(tmp_path / "a")(x), y) in told and "warning" not in told


def test_the_form_seed_is_smaller_and_refused_where_weights_are_trained(
    ticket: Command, made: Path, finished: Callable[..., Path], tmp_path: Path
) -> None:
    ticket("make", finished(), "-o", tmp_path / "seed.ticket", "--form", "seed")
    assert (tmp_path / "seed.ticket").stat().st_size < made.stat().st_size
    assert "bits" in ticket("make", finished("bihalf"), "-o", tmp_path / "no", "--form", "seed", status=2)
    assert not (tmp_path / "no").exists()


def test_export_writes_what_other_programs_read(ticket: Command, made: Path, tmp_path: Path) -> None:
    told = ticket("export", made, "--onnx", tmp_path / "a.onnx", "--torch", tmp_path / "a.pt2", "--fold")
    assert "parameters left" in told and float(told.split("differ by ")[1].split()[0]) <= 1e-5
    x = torch.randn(3, 1, 8, 8)
    (logits,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), load_ticket(made)(x).detach(), rtol=1e-4, atol=1e-5)
    assert "--onnx FILE, --torch FILE or --cpp DIR" in ticket("export", made, status=2)

    known = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert known["classes"] == [str(digit) for digit in load_digits().target_names]
    test = load_dataset("digits").test
    assert isinstance(test, ImageSet)
    x = (test.images / 255 - known["mean"][0]) / known["std"][0]
    (logits,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"images": x.numpy()})
    assert hits(torch.from_numpy(logits), test.labels) in ticket("verify", made, "--data", "digits")
    extra = dict.fromkeys(known, "")
    torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    assert {name: json.loads(text) for name, text in extra.items()} == known


def test_run_tells_classes_and_probabilities_of_image_files(ticket: Command, folder: Path, tmp_path: Path) -> None:
    model = create_model(**ARCHITECTURE, in_channels=3, seed=0)
    binarize_weights(model, "mpt-bihalf", 0.5, seed=0)
    path = tmp_path / "mine.ticket"
    save_ticket(model, path, ARCHITECTURE, mean=MEAN, std=STD, classes=NAMES)
    files = sorted((folder / "test" / "two").iterdir())[:3]
    pixels = torch.stack([transforms.ToTensor()(Image.open(file)) for file in files])
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        wanted = load_ticket(path)((pixels - shift) / scale).softmax(1)
    lines = [json.loads(line) for line in ticket("run", path, *files, "--json").splitlines()]
    assert [line["file"] for line in lines] == [str(file) for file in files]
    for line, shares in zip(lines, wanted, strict=True):
        assert line["probabilities"] == pytest.approx(dict(zip(NAMES, shares.tolist(), strict=True)), abs=1e-5)
    first, second = wanted[0].argsort(descending=True)[:2].tolist()
    shown = f"{NAMES[first]} {100 * wanted[0][first]:.1f} %, {NAMES[second]} {100 * wanted[0][second]:.1f} %"
    assert ticket("run", path, files[0], "--top", 2) == f"{files[0]}: {shown}\n"
    assert ticket("run", path, folder / "test").count("\n") == 80


def test_run_scales_images_and_makes_them_grey(ticket: Command, made: Path, tmp_path: Path) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    for name, size in (("wide.png", (40, 20)), ("small.jpg", (5, 5)), ("as it is.bmp", (8, 8))):
        Image.new("RGB", size, (200, 30, 90)).save(place / name)
    lines = ticket("run", made, place).splitlines()
    assert [re.sub(r": \d \d+\.\d %$", "", line) for line in lines] == [
        str(place / name) for name in ("as it is.bmp", "small.jpg", "wide.png")
    ]


def test_run_refuses_what_is_no_image(ticket: Command, made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "none").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for place, reason in (
        ("text.png", "cannot read image"),
        ("none", "there is no image"),
        ("gone.png", "cannot read"),
    ):
        assert reason in ticket("run", made, tmp_path / place, status=2)
    ticket("run", made, tmp_path / "pipe.png", status=2)
    assert "--top must be at least 1" in ticket("run", made, tmp_path / "text.png", "--top", 0, status=2)


def test_run_warns_where_mean_and_std_are_not_known(ticket: Command, folder: Path, tmp_path: Path) -> None:
    model = create_model(**ARCHITECTURE, seed=0)
    save_ticket(binarize_weights(model, "sign", seed=0), tmp_path / "a", ARCHITECTURE)
    told = ticket("run", tmp_path / "a", folder / "test" / "one" / "50.png")
    assert told.startswith("warning: the ticket has no valid mean and std")


def test_bench_sets_a_ticket_beside_torch_and_onnxruntime(
    ticket: Command, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    told = ticket("bench", made, "--batches", 1, 3, "--threads", 1)
    assert "ONNX Runtime" in told
    rows = [line.split() for line in told.splitlines()[-2:]]
    assert [row[:2] for row in rows] == [["1", "1"], ["3", "1"]]
    for row in rows:
        ours, *others = map(float, row[2:5])
        assert [float(ratio) for ratio in row[5:]] == pytest.approx([each / ours for each in others], rel=0.2, abs=0.2)
    monkeypatch.setattr(bench, "_has_onnx", lambda: False)
    assert "ONNX" not in ticket("bench", made, "--batches", 1, "--threads", 1)
    for bad in (("--batches", 0), ("--threads", 0), ("--threads", 10**9), ("--batches", 10**9)):
        assert f"{bad[0]} must lie in 1 to" in ticket("bench", made, *bad, status=2)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_export_cpp_writes_a_program_that_gives_the_same_logits(
    ticket: Command, made: Path, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "program"
    told = ticket("export", made, "--cpp", place)
    assert sorted(file.name for file in place.iterdir()) == ["ticket.cpp", "weights.bin"]
    assert told.count("wrote") == 2
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized")
    program = place / "ticket"
    subprocess.run(["g++", *flags, place / "ticket.cpp", "-o", program], check=True)

    def run(*given: object, status: int = 0) -> str:
        done = subprocess.run([program, *map(str, given)], capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert not status or (done.stderr.count("\n") == 1 and done.stdout == "")
        return done.stderr if status else done.stdout

    spec = read_ticket(made).image_spec
    assert spec.mean and spec.std
    raw = Image.open(folder / "test" / "two" / "45.png").convert("L")
    (tmp_path / "bytes.raw").write_bytes(raw.tobytes())
    x = (torch.tensor(list(raw.tobytes())).view(1, 1, 8, 8).float() / 255 - spec.mean[0]) / spec.std[0]
    (tmp_path / "floats.raw").write_bytes(x.numpy().tobytes())
    wanted = compile_ticket(made)(x)[0]
    lines = run("--logits", place / "weights.bin", tmp_path / "bytes.raw", tmp_path / "floats.raw").splitlines()
    for line in lines:
        assert torch.tensor([float(word) for word in line.split()]) == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    best = int(wanted.argmax())
    share = 100 * wanted.softmax(0)[best]
    assert run(place / "weights.bin", tmp_path / "bytes.raw").startswith(
        f"{tmp_path / 'bytes.raw'}: {best} {share:.1f} %"
    )

    assert run(status=2).startswith("usage: ")
    (tmp_path / "short.raw").write_bytes(b"1234")
    assert "short.raw has 4 bytes: an image is 64" in run(place / "weights.bin", tmp_path / "short.raw", status=2)
    assert "cannot read" in run(place / "weights.bin", tmp_path / "gone.raw", status=2)
    os.mkfifo(tmp_path / "pipe.raw")
    assert "cannot read" in run(place / "weights.bin", tmp_path / "pipe.raw", status=2)
    content = (place / "weights.bin").read_bytes()
    told = content[16 : 16 + 16 + 8 + sum(4 + len(name) for name in spec.classes or ())]  # all but the program
    (tmp_path / "cut.bin").write_bytes(content[:8] + struct.pack("<Q", zlib.crc32(told)) + told)
    assert "error: " in run(tmp_path / "cut.bin", tmp_path / "bytes.raw", status=2)
    flipped = content[:200] + bytes([content[200] ^ 1]) + content[201:]
    for damaged in (content[:-5], content[:10], flipped, b"", content[:8] + bytes(24)):
        (tmp_path / "damaged.bin").write_bytes(damaged)
        assert re.match(
            "error: (the weights are|no weights)", run(tmp_path / "damaged.bin", tmp_path / "bytes.raw", status=2)
        )


def test_export_cpp_needs_a_folder(ticket: Command, made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    assert "is no folder" in ticket("export", made, "--cpp", tmp_path / "file", status=2)
    assert "No such file" in ticket("export", made, "--cpp", tmp_path / "no" / "where", status=2)
    assert (tmp_path / "file").read_text() == "kept"


def test_nothing_is_written_in_the_place_of_what_is_read_or_no_file(
    ticket: Command, made: Path, finished: Callable[..., Path], tmp_path: Path
) -> None:
    before = made.read_bytes()
    assert "named twice" in ticket("export", made, "--torch", made, status=2)
    assert "named twice" in ticket("export", made, "--torch", tmp_path / "x", "--onnx", tmp_path / "x", status=2)
    os.mkfifo(tmp_path / "pipe")
    assert "no file" in ticket("make", finished(), "-o", tmp_path / "pipe", status=2)
    assert made.read_bytes() == before and (tmp_path / "pipe").is_fifo() and not (tmp_path / "x").exists()


def test_compare_sets_tickets_against_chance(
    ticket: Command, made: Path, finished: Callable[..., Path], tmp_path: Path
) -> None:
    ticket("make", finished(seed=1), "-o", tmp_path / "b.ticket")
    told = ticket("compare", made, tmp_path / "b.ticket")
    assert "A and B" in told and "share of weights kept" in told
    assert "two tickets" in ticket("compare", made, status=2)


def test_transfer_scores_a_mask_elsewhere(ticket: Command, finished: Callable[..., Path], tmp_path: Path) -> None:
    made = tmp_path / "narrow.ticket"
    ticket("make", finished(width=0.1, prune_rate=0.5, epochs=2), "-o", made)
    told = ticket("transfer", made)
    assert f"their own mean {load_digits().images.mean() / 16:.3f}" in told
    as_it_is = [line.split() for line in told.splitlines()[-2:]]
    elsewhere = [line.split() for line in ticket("transfer", made, "--seed", 9).splitlines()[-2:]]
    known = ticket("verify", made, "--data", "digits").rsplit("top-1 ", 1)[1].split()[0]
    assert as_it_is[0][-2] == known
    assert float(as_it_is[0][-1]) > 60 > 40 > float(as_it_is[1][-2])  # a readout learns, a shuffled ticket guesses
    assert as_it_is[0][-2:] != as_it_is[1][-2:]
    assert elsewhere[0][-2:] != as_it_is[0][-2:] and float(elsewhere[0][-2]) < 50


def test_transfer_as_init_trains_from_mask_and_signs_beside_controls(ticket: Command, made: Path) -> None:
    arguments = ("transfer", made, "--as", "init", "--epochs", 2, "--batch-size", 64, "--lr", 0.05)
    told = ticket(*arguments)
    assert "digits, 2 epochs at a learning rate of 0.05" in told
    rows = [re.split(r"  +", line.strip()) for line in told.splitlines()[-4:]]
    labels = [("of the ticket", "of the ticket"), ("of the ticket", "shuffled"), ("shuffled", "shuffled")]
    assert [tuple(row[:2]) for row in rows] == [*labels, ("none", "random")]
    assert float(rows[3][2]) > 50  # chance is 10
    assert ticket(*arguments) == told
    assert ticket(*arguments, "--seed", 1) != told


def test_options_of_a_training_need_one(ticket: Command, made: Path) -> None:
    for option in ("--epochs", "--lr", "--batch-size", "--trials"):
        assert f"{option} is of a training: it goes with --as init" in ticket("transfer", made, option, 1, status=2)
    for option, value, why in (
        ("--epochs", 0, "epochs must lie in 1"),
        ("--lr", -1, "lr must be"),
        ("--batch-size", 5000, "batch size 5000 exceeds"),
        ("--trials", 0, "--trials must be at least 1"),
        ("--seed", -1, "seed must lie in 0"),
    ):
        assert why in ticket("transfer", made, "--as", "init", option, value, status=2)


def test_a_training_from_a_ticket_that_is_interrupted_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: Path
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr("mpt_bihalf.tickets.retrain.train_step", interrupt)
    monkeypatch.setattr("sys.argv", ["mpt_bihalf", "ticket", "transfer", str(made), "--as", "init"])
    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted: nothing of it is kept\n"


def test_data_that_a_network_is_not_for_are_refused(ticket: Command, made: Path, tmp_path: Path) -> None:
    for why, sizes in {
        "1 channels": {"in_channels": 3, "image_size": 8},
        "10 classes": {"in_channels": 1, "image_size": 8, "num_classes": 5},
        "images of 12x12": {"in_channels": 1, "image_size": (8, 12)},
    }.items():
        architecture = {"name": "conv2", "width": 0.05, **sizes}
        model = binarize_weights(create_model(**architecture), "sign", seed=0)
        save_ticket(model, tmp_path / "b", architecture)
        assert why in ticket("verify", tmp_path / "b", "--data", "digits", status=2)
    assert "images of 12x12" in ticket("transfer", made, "--data", "digits", "--image-size", 12, status=2)


def test_what_has_no_mask_is_not_put_on_other_weights(
    ticket: Command, finished: Callable[..., Path], tmp_path: Path
) -> None:
    for method, why in (("bihalf", "nothing is pruned"), ("dense", "no binary layer")):
        ticket("make", finished(method), "-o", tmp_path / method)
        assert why in ticket("transfer", tmp_path / method, "--seed", 1, status=2)
        assert why in ticket("transfer", tmp_path / method, "--as", "init", status=2)


def test_what_is_no_finished_run_or_no_ticket_is_refused(
    ticket: Command, made: Path, tmp_path: Path, finished: Callable[..., Path]
) -> None:
    assert "no run's folder" in ticket("make", tmp_path, "-o", tmp_path / "b", status=2)
    assert "no folder" in ticket("make", finished(), "-o", tmp_path / "none" / "b", status=2)
    assert "is a folder" in ticket("export", made, "--onnx", tmp_path, status=2)
    assert "no file" in ticket("show", tmp_path / "b", status=2)
    save_ticket(torch.nn.Linear(2, 2), tmp_path / "own")
    for command in (("export", tmp_path / "own", "--torch", tmp_path / "x"), ("transfer", tmp_path / "own")):
        ticket(*command, status=2)
    assert "classes" in ticket("show", made, "--json")


@pytest.fixture
def of_folder(ticket: Command, finished: Callable[..., Path], folder: Path, tmp_path: Path) -> Path:
    """The ticket of a run on the folder of digits."""
    ticket("make", finished(data=f"folder:{folder}", batch_size=16), "-o", tmp_path / "f.ticket")
    return tmp_path / "f.ticket"


def swap_test_labels(folder: Path) -> None:
    first, second = folder / "test" / NAMES[0], folder / "test" / NAMES[1]
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def test_changed_data_of_the_same_name_are_refused_with_what_changed(
    ticket: Command, of_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)  # a ticket tells no place
    before = ticket("verify", of_folder, "--data", f"folder:{folder}")
    assert "other data" not in before
    swap_test_labels(folder)
    refused = "error: folder:digits holds other data than the ticket's run was trained on: test images have other "
    assert ticket("verify", of_folder, "--data", "folder:digits", status=2).startswith(refused)
    told = ticket("transfer", of_folder, status=2)
    assert told.startswith(refused) and told.endswith("; say --data\n")
    assert "other data than the ticket's run was trained on: test images have other " in ticket(
        "transfer", of_folder, "--data", f"folder:{folder}"
    )
    (folder / "train" / NAMES[0] / "0.png").unlink()
    assert "there are 159 training images, not 160" in ticket(
        "verify", of_folder, "--data", f"folder:{folder}", status=2
    )
    swap_test_labels(folder)
    write_digits(folder, brightness=1.0)
    assert ticket("verify", of_folder, "--data", f"folder:{folder}") == before


def test_the_same_data_elsewhere_are_no_others(ticket: Command, of_folder: Path, folder: Path, tmp_path: Path) -> None:
    before = ticket("verify", of_folder, "--data", f"folder:{folder}").rsplit(": ", 1)[1]
    moved = folder.rename(tmp_path / "elsewhere")
    assert ticket("verify", of_folder, "--data", f"folder:{moved}").rsplit(": ", 1)[1] == before
    assert "other data" not in before


def test_other_data_of_another_name_are_scored_and_said_to_be_others(
    ticket: Command, of_folder: Path, tmp_path: Path
) -> None:
    dark = write_digits(tmp_path / "dark", brightness=0.2)
    told = ticket("verify", of_folder, "--data", f"folder:{dark}")
    assert re.search(r"test top-1 [\d.]+ %; its run had [\d.]+ % on folder:digits, which are other data\n", told)


def test_a_ticket_that_does_not_tell_its_data_is_scored_on_any(
    ticket: Command, of_folder: Path, folder: Path, tmp_path: Path
) -> None:
    for data in (None, {}, "x", {"sha256": "0" * 64}):
        about = {name: value for name, value in read_ticket(of_folder).about.items() if name != "data"}
        write_ticket(
            replace(read_ticket(of_folder), about=about | ({} if data is None else {"data": data})), tmp_path / "b"
        )
        swap_test_labels(folder)
        assert "other data" not in ticket("verify", tmp_path / "b", "--data", f"folder:{folder}")


def test_a_run_whose_data_have_changed_makes_no_ticket(
    ticket: Command, finished: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    run = finished(data=f"folder:{folder}", batch_size=16)
    swap_test_labels(folder)
    assert "holds other data than" in ticket("make", run, "-o", tmp_path / "b", status=2)
    assert not (tmp_path / "b").exists()


def test_a_ticket_of_another_network_than_asked_for_is_refused(ticket: Command, made: Path, tmp_path: Path) -> None:
    exported = tmp_path / "a.pt2"
    for command in (
        ("show", made),
        ("verify", made),
        ("export", made, "--torch", exported),
        ("compare", made, made),
        ("transfer", made, "--seed", "1"),
    ):
        assert "it is for 'conv2', not for 'conv4'" in ticket(*command, "--model", "conv4", status=2)
    assert "unknown model 'conv5'" in ticket("show", made, "--model", "conv5", status=2)
    assert not exported.exists()
    ticket("show", made, "--model", "conv2")
    ticket("compare", made, made, "--model", "conv2")

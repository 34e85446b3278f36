from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from mpt_bihalf import METHODS, binary_layers, binary_weights, sparse
from mpt_bihalf.data import Dataset, batches, evaluation_batches, training_batches
from mpt_bihalf.data.mixing import jensen_shannon
from mpt_bihalf.signals import Stopped
from mpt_bihalf.training import Run, loop, step, train
from mpt_bihalf.training.build import build_model
from mpt_bihalf.training.events import TensorBoard
from mpt_bihalf.training.finished import finished_model
from mpt_bihalf.training.step import FIGURES, evaluate, train_step
from tests.reference import one_line_error
from tests.told import Each, Told

RECORDS = ("result.json", "metrics.csv", "layers.csv", "trace.csv", "config.json")

Trained = Callable[..., tuple[Run, Path]]
Weights = Callable[[Path], dict[str, Tensor]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Learning rate and batch size of each step that is made."""
    made: list[tuple[float, int]] = []
    step = loop.train_step

    def note(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, *others: Any) -> Tensor:
        made.append((optimizer.param_groups[0]["lr"], len(x)))
        return step(model, optimizer, x, *others)

    monkeypatch.setattr(loop, "train_step", note)
    return made


def scheduled(make: Callable[[SGD], LRScheduler], steps: int) -> list[float]:
    """Learning rates as torch's own scheduler gives them, from 0.4."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.4)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("options", "scheduler"),
    [
        ({"schedule": "cosine"}, lambda optimizer: CosineAnnealingLR(optimizer, T_max=12)),
        (
            {"schedule": "linear"},
            lambda optimizer: LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=12),
        ),
        ({"schedule": "step", "milestones": (1, 2)}, lambda optimizer: MultiStepLR(optimizer, [4, 8], gamma=0.1)),
        ({"schedule": "constant"}, lambda optimizer: MultiStepLR(optimizer, [])),
    ],
    ids=["cosine", "linear", "step", "constant"],
)
def test_the_learning_rate_of_each_step_is_that_of_torchs_scheduler(
    options: dict[str, object], scheduler: Any, trained: Trained, steps: list[tuple[float, int]]
) -> None:
    trained(lr=0.4, epochs=3, **options)
    assert [rate for rate, _ in steps] == pytest.approx(scheduled(scheduler, 12), rel=1e-9)


def test_the_layers_know_how_far_the_training_is(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    step = loop.train_step

    def note(model: nn.Module, *others: Any) -> Tensor:
        shares.append({part.progress for _, part, _ in binary_layers(model)})
        return step(model, *others)

    monkeypatch.setattr(loop, "train_step", note)
    trained(method="irnet", epochs=2)
    assert shares == [{0.0}] * 4 + [{0.5}] * 4


def test_the_last_incomplete_batch_is_dropped(trained: Trained, steps: list[tuple[float, int]]) -> None:
    _, folder = trained(batch_size=64, epochs=2)  # 300 images
    assert [size for _, size in steps] == [64] * 8
    hits = pd.read_csv(folder / "metrics.csv")["train_top1"] / 100 * 256
    assert hits.tolist() == pytest.approx(hits.round().tolist(), abs=1e-6)


def test_labels_are_smoothed_in_the_loss_that_is_trained_and_in_no_other(trained: Trained) -> None:
    frozen = {"method": "bihalf", "lr": 0.0, "epochs": 1}
    _, plain = trained("plain", **frozen)
    _, smooth = trained("smooth", **frozen, label_smoothing=0.25)
    _, nearly_even = trained("nearly even", **frozen, label_smoothing=0.5)
    was, mixed, even = (pd.read_csv(folder / "metrics.csv").iloc[0] for folder in (plain, smooth, nearly_even))
    for figure in ("train_top1", "train_top5", "test_loss", "test_top1", "test_top5"):
        assert was[figure] == mixed[figure] == even[figure]
    # (1 - s) times the loss, plus s times the mean over the classes: a line in s.
    assert mixed["train_loss"] != was["train_loss"]
    assert mixed["train_loss"] == pytest.approx((was["train_loss"] + even["train_loss"]) / 2, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_what_a_plain_evaluation_of_the_saved_network_gives(
    method: str, trained: Trained, small: Dataset, weights_of: Weights
) -> None:
    # Without batch norm the own scales of IR-Net and Real-to-Binary and Bop's own thresholds end in logits that are no
    # measure.
    calm: dict[str, dict[str, object]] = {
        "irnet": {"scale": "kaiming"},
        "real-to-binary": {"scale": "kaiming"},
        "bop": {"bop_gamma": 1e-3, "bop_tau": 1e-5, "width": 1.0},
    }
    run, folder = trained(method=method, epochs=2, lr=0.05, **calm.get(method, {}))
    model = build_model(run, small)
    model.load_state_dict(weights_of(folder))
    x = ((small.test.images.double() / 255 - small.mean[0]) / small.std[0]).float()
    with torch.no_grad():
        logits = model(x).double().numpy()
    y = small.test.labels.numpy()
    ranking = np.argsort(-logits, axis=1)
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["test_top1"] == pytest.approx(100 * np.mean(ranking[:, 0] == y), rel=1e-9)
    assert result["test_top5"] == pytest.approx(100 * np.mean((ranking[:, :5] == y[:, None]).any(1)), rel=1e-9)
    assert result["test_loss"] == pytest.approx(-np.log(chances[np.arange(len(y)), y]).mean(), rel=1e-4)


def test_a_record_of_a_network_pruned_to_nothing_is_read_and_says_why(
    trained: Trained, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(loop, "check_begins", lambda run, model: None)  # as it was before such networks were refused
        run, folder = trained(method="mpt-sign", prune_rate=0.9999999, epochs=1)
    text = (folder / "result.json").read_text()
    result = json.loads(text)
    assert result["test_loss"] == pytest.approx(log(10), rel=1e-6)
    assert 0 <= result["test_top1"] < 25
    assert result["note"] == "the network gives the same logits for every test image"
    (folder / "result.json").unlink()
    train(run, folder, small)
    assert (folder / "result.json").read_text() == text
    model, _ = finished_model(run, folder, small)
    assert not any(bits.any() for bits in binary_weights(model).values())
    with one_line_error("mpt-sign on conv2: prune_rate 0.9999999 keeps none .*take at most"):
        train(replace(run, epochs=2), folder.parent / "new", small)
    assert not (folder.parent / "new").exists()


def test_the_note_is_of_the_last_epoch(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = iter([True, False, False, True])
    monkeypatch.setattr(loop, "evaluate", lambda *given: (evaluate(*given)[0], next(looked)))
    folders = [trained(place, epochs=2)[1] for place in ("only the first", "only the last")]
    assert ["note" in json.loads((folder / "result.json").read_text()) for folder in folders] == [False, True]


@pytest.mark.parametrize(
    ("options", "flip", "padding"),
    [({}, False, 0), ({"augment": "standard"}, True, 1), ({"flip": "on"}, True, 0), ({"crop_padding": "on"}, False, 1)],
)
def test_training_images_are_augmented_as_the_run_says_and_test_images_never(
    options: dict[str, Any],
    flip: bool,
    padding: int,
    tmp_path: Path,
    small: Dataset,
    make_run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, list[Tensor]] = {"train": [], "test": []}
    step, look = loop.train_step, loop.evaluate

    def noted(batches: Any) -> Any:
        for x, y in batches:
            seen["test"].append(x)
            yield x, y

    monkeypatch.setattr(loop, "train_step", lambda *given: seen["train"].append(given[2]) or step(*given))  # type: ignore[func-returns-value]
    monkeypatch.setattr(loop, "evaluate", lambda model, batches, *others: look(model, noted(batches), *others))
    train(make_run(epochs=1, **options), tmp_path / "run", small)
    same = replace(small, flip=flip, crop_padding=padding)
    assert torch.equal(torch.cat(seen["train"]), torch.cat([x for x, _ in training_batches(same, 64, 0, 0)]))
    assert torch.equal(torch.cat(seen["test"]), torch.cat([x for x, _ in evaluation_batches(small.test, small, 123)]))


def test_a_holdout_is_trained_on_by_no_step_and_evaluated_whole(
    trained: Trained, small: Dataset, weights_of: Weights, steps: list[tuple[float, int]]
) -> None:
    run, folder = trained(holdout=0.3, epochs=2)
    assert len(steps) == 2 * (210 // 64)
    model = build_model(run, small)
    model.load_state_dict(weights_of(folder))
    _, held_out = small.hold_out(0.3)
    with torch.no_grad():
        logits = model(((held_out.images.double() / 255 - small.mean[0]) / small.std[0]).float())
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["validation_top1"].iloc[-1] == pytest.approx(
        100 * (logits.argmax(1) == held_out.labels).double().mean().item()
    )
    result = json.loads((folder / "result.json").read_text())
    best = metrics.iloc[metrics["validation_top1"].argmax()]
    assert (result["best_epoch"], result["best_epoch_test_top1"]) == (best["epoch"], best["test_top1"])


def test_a_nan_ends_the_run_as_diverged_and_names_the_layer(trained: Trained) -> None:
    _, folder = trained(method="sign", lr=1e38, weight_decay=10.0, epochs=2)
    result = json.loads((folder / "result.json").read_text())
    assert result == {"status": "diverged: NaN in layer '0' in epoch 1"}


@pytest.mark.parametrize("method", ["rbnn", "rbnn-bihalf"])
def test_infinite_weights_that_are_to_be_rotated_end_the_run_as_diverged(method: str, trained: Trained) -> None:
    _, folder = trained(method=method, lr=1e39, batch_size=300, epochs=3)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"].startswith("diverged: NaN in layer ")


@pytest.mark.parametrize("layer", ["0", "6", "10"])
@pytest.mark.parametrize("method", ["bihalf", "mpt-bihalf"])
def test_the_layer_named_is_the_one_with_the_nan(
    method: str, layer: str, tmp_path: Path, small: Dataset, make_run: Callable[..., Run], monkeypatch: Any
) -> None:
    step = loop.train_step

    def poison(model: nn.Module, *others: Any) -> Tensor:
        totals = step(model, *others)
        part = dict((name, (binary, weight)) for name, binary, weight in binary_layers(model))[layer]
        with torch.no_grad():
            (part[1] if part[0].scores is None else part[0].scores).view(-1)[3] = float("nan")
        return totals

    monkeypatch.setattr(loop, "train_step", poison)
    result = train(make_run(method=method), tmp_path / "run", small)
    assert result == {"status": f"diverged: NaN in layer {layer!r} in epoch 1"}
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


def poison_at(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From training step `at` of a process on, counted from 1, the loss is NaN, and so is what is trained by it."""
    forward, count = step._logits, 0

    def poisoned(model: nn.Module, *others: Any) -> Tensor:
        nonlocal count
        count += model.training
        return forward(model, *others) * (float("nan") if model.training and count >= at else 1.0)

    monkeypatch.setattr(step, "_logits", poisoned)


@pytest.mark.parametrize("method", ["dense", "sign", "mpt-bihalf", "bop"])
def test_a_loss_that_becomes_nan_in_the_middle_is_recorded_beside_the_epochs_before(
    method: str, trained: Trained, monkeypatch: pytest.MonkeyPatch, curves_of: Callable[[Path], Any]
) -> None:
    poison_at(10, monkeypatch)  # four steps an epoch
    _, folder = trained(method=method, epochs=4, lr=0.01)
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == {"status"}
    assert result["status"].startswith("diverged: ") and result["status"].endswith("in epoch 3")
    assert pd.read_csv(folder / "metrics.csv")["epoch"].tolist() == [1, 2]
    assert [step for step, _ in curves_of(folder)["loss/train"]] == [1, 2]


@pytest.mark.parametrize("method", ["bihalf", "bop"])
def test_a_diverging_run_that_is_stopped_ends_as_diverged_as_one_left_alone(
    method: str,
    tmp_path: Path,
    trained: Trained,
    stopped: Callable[..., tuple[Run, Path]],
    small: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison_at(6, monkeypatch)
    _, whole = trained("whole", method=method)
    monkeypatch.undo()
    poison_at(6, monkeypatch)
    run, folder = stopped(7, method=method)
    monkeypatch.undo()
    poison_at(2, monkeypatch)  # its first epoch is kept
    assert train(run, folder, small) == json.loads((whole / "result.json").read_text())
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert not list(folder.glob("unusable-*"))


def test_a_loss_that_is_not_finite_ends_a_dense_run_too(trained: Trained) -> None:
    _, folder = trained(method="dense", lr=1e30, epochs=2)
    assert json.loads((folder / "result.json").read_text())["status"].startswith("diverged: ")


@pytest.mark.parametrize("method", ["bihalf", "mpt-bihalf"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    method: str, optimizer: str, trained: Trained, weights_of: Weights
) -> None:
    options = {"method": method, "optimizer": optimizer, "lr": 0.01}
    first, again, other = (
        weights_of(trained(place, seed=seed, **options)[1]) for place, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first.keys() == again.keys() == other.keys()
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        assert torch.equal(value, other[name]) == name.endswith("_extra_state"), name  # which tells the method


@pytest.mark.parametrize(("method", "optimizer"), [("bihalf", "adam"), ("mpt-sign", "sgd"), ("irnet", "sgd")])
def test_a_run_is_the_same_under_every_default_dtype(method: str, optimizer: str, trained: Trained) -> None:
    setting = {"method": method, "optimizer": optimizer, "lr": 0.01, "trace": 2, "holdout": 0.2}
    _, usual = trained("usual", **setting)
    torch.set_default_dtype(torch.float64)
    try:
        _, other = trained("other", **setting)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_ends(other, usual)


def test_frozen_weights_stay_to_the_last_bit(trained: Trained, small: Dataset, weights_of: Weights) -> None:
    run, folder = trained(method="mpt-bihalf", weight_decay=0.1)
    begun, ended = build_model(run, small).state_dict(), weights_of(folder)
    for name, value in begun.items():
        assert torch.equal(ended[name], value) == name.endswith(("original", "_extra_state")), name


@pytest.mark.parametrize("at", [5, 8, 11])
def test_a_run_killed_in_a_step_goes_on_from_its_last_epoch(
    at: int, tmp_path: Path, trained: Trained, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = trained(epochs=3, method="bihalf")
    step, count = loop.train_step, 0

    def interrupt(*arguments: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        return step(*arguments)

    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(run, folder, small)
    done = (at - 1) // 4
    assert not (folder / "result.json").exists()
    assert len(pd.read_csv(folder / "metrics.csv")) == done
    train(run, folder, small)
    assert same_ends(folder, whole)
    assert json.loads((folder / "times.json").read_text())["from_epoch"] == done


def same_ends(folder: Path, whole: Path) -> bool:
    """Whether two folders hold the same bytes in their records and the same tensors in their checkpoints."""
    names = [name for name in RECORDS if (whole / name).exists()]
    assert {name: (folder / name).read_bytes() for name in names} == {
        name: (whole / name).read_bytes() for name in names
    }
    saved, expected = (torch.load(place / "checkpoint.pt", weights_only=True)["model"] for place in (folder, whole))
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    return True


STOPPED: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense", "holdout": 0.1},
    "bihalf": {"method": "bihalf", "trace": 3},
    "bihalf-adam": {"method": "bihalf", "optimizer": "adam", "lr": 0.01, "holdout": 0.1},
    "sign-step": {"method": "sign", "schedule": "step", "milestones": (1, 2), "trace": 1, "momentum": 0.0},
    "irnet": {"method": "irnet", "trace": 2, "scale": "kaiming"},
    "bop": {"method": "bop", "bop_gamma": 1e-3, "bop_tau": 1e-5, "trace": 3},
    "mpt-sign-bf16": {"method": "mpt-sign", "precision": "bf16"},
    "mpt-bihalf": {"method": "mpt-bihalf", "holdout": 0.1, "trace": 3},
    "bihalf-fp16": {"method": "bihalf", "precision": "fp16", "trace": 3},
    "mpt-balanced-adam-fp16": {"method": "mpt-balanced", "optimizer": "adam", "lr": 0.01, "precision": "fp16"},
    "bop-fp16": {"method": "bop", "bop_gamma": 1e-3, "bop_tau": 1e-5, "precision": "fp16"},
    "mpt-bihalf-adam": {"method": "mpt-bihalf", "scope": "global", "optimizer": "adam", "lr": 0.01, "trace": 4},
    "mpt-balanced-affine": {"method": "mpt-balanced", "train_affine": True, "skip": ("first",)},
    "magnitude-bihalf": {"method": "magnitude-bihalf", "trace": 1},
    "sparse": {"method": "magnitude-bihalf", "compute": "sparse", "prune_rate": 0.9, "trace": 3},
    "a mask that never learns": {"method": "mpt-bihalf", "learn_mask": False, "trace": 1},
}


@pytest.mark.parametrize("options", STOPPED.values(), ids=STOPPED)
def test_a_run_stopped_twice_in_mid_epoch_ends_with_the_same_bits(
    options: dict[str, Any],
    tmp_path: Path,
    trained: Trained,
    stopped: Callable[..., tuple[Run, Path]],
    small: Dataset,
    curves_of: Callable[[Path], Any],
) -> None:
    if options.get("compute") == "sparse" and not sparse.available():
        pytest.skip("no compiled loops with AVX2 here")
    run, whole = trained("whole", epochs=3, **options)
    stopped(2, epochs=3, **options)
    _, folder = stopped(7, epochs=3, **options)
    assert not (folder / "result.json").exists()
    steps: list[int] = []
    train(
        run, folder, small, [Each(lambda progress: steps.append(progress.step) if progress.figures is None else None)]
    )
    assert steps == [8, 9, 10, 11, 12]
    assert same_ends(folder, whole)
    assert curves_of(folder) == curves_of(whole)
    if run.trace and run.method != "dense":
        np.testing.assert_equal(curves_of(folder / "trace"), curves_of(whole / "trace"))  # NaN where none is kept


@pytest.mark.parametrize(("at", "signum"), [(at, (signal.SIGINT, signal.SIGTERM)[at % 2]) for at in range(1, 9)])
def test_a_run_can_be_stopped_after_any_step(
    at: int, signum: int, trained: Trained, stopped: Callable[..., tuple[Run, Path]], small: Dataset
) -> None:
    options = {"method": "sign", "trace": 3, "holdout": 0.1, "lr": 0.3}
    _, whole = trained("whole", **options)
    run, folder = stopped(at, signum=signum, **options)
    steps: list[int] = []
    train(run, folder, small, [Each(lambda progress: steps.append(progress.step))])
    # After the last step of an epoch the images to test on are left, and it is told again with their figures.
    assert steps == sorted([*range(at + 1, 9), 8, *([4] if at <= 4 else [])])
    assert same_ends(folder, whole)


def test_evaluation_is_given_up_for_a_stop_and_the_steps_are_kept(
    tmp_path: Path, trained: Trained, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = trained("whole", method="mpt-bihalf")
    looked, logits = [], step._logits

    def look(model: nn.Module, x: Tensor, precision: str) -> Tensor:
        if not model.training:
            looked.append(len(x))
            if len(looked) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
        return logits(model, x, precision)

    with monkeypatch.context() as patch:
        patch.setattr(step, "_logits", look)
        patch.setattr(batches, "EVALUATION_BATCH", 20)
        with pytest.raises(Stopped):
            train(run, tmp_path / "run", small)
    assert looked == [20, 20, 20]
    steps: list[int] = []
    train(run, tmp_path / "run", small, [Each(lambda progress: steps.append(progress.step))])
    assert steps == [4, 5, 6, 7, 8, 8]
    assert same_ends(tmp_path / "run", whole)


def test_a_run_that_was_done_when_asked_to_stop_is_done(
    stopped: Callable[..., tuple[Run, Path]],
    trained: Trained,
    tmp_path: Path,
    small: Dataset,
    make_run: Callable[..., Run],
) -> None:
    def tell(progress: Told) -> None:
        if progress.figures and progress.step == progress.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(make_run(), tmp_path / "last", small, [Each(tell)])
    _, whole = trained("whole")
    assert same_ends(tmp_path / "last", whole)


def test_a_killed_run_goes_on_from_a_checkpoint_in_mid_epoch(
    trained: Trained, stopped: Callable[..., tuple[Run, Path]], small: Dataset
) -> None:
    options = {"method": "bop", "bop_gamma": 1e-3, "bop_tau": 1e-5, "trace": 2}
    _, whole = trained("whole", **options)
    run, folder = stopped(6, **options)

    def kill(progress: Told) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        train(run, folder, small, [Each(kill)])
    train(run, folder, small)
    assert same_ends(folder, whole)


def test_progress_is_told_after_each_step_and_each_epoch(
    tmp_path: Path, small: Dataset, make_run: Callable[..., Run]
) -> None:
    told: list[Told] = []
    result = train(make_run(), tmp_path, small, [Each(told.append)])
    assert [(step, steps) for step, steps, _ in told] == [(n, 8) for n in (1, 2, 3, 4, 4, 5, 6, 7, 8, 8)]
    assert [index for index, progress in enumerate(told) if progress.figures] == [4, 9]
    assert told[9].figures == {"epoch": 2} | {name: result[name] for name in FIGURES}


def test_the_figures_of_each_epoch_are_on_disk_when_they_are_told(
    tmp_path: Path, small: Dataset, make_run: Callable[..., Run]
) -> None:
    found: list[list[int]] = []

    def tell(progress: Told) -> None:
        if progress.figures:
            found.append(pd.read_csv(tmp_path / "metrics.csv")["epoch"].tolist())

    train(make_run(epochs=3), tmp_path, small, [Each(tell)])
    assert found == [[1], [1, 2], [1, 2, 3]]


def test_figures_of_an_epoch_that_has_to_be_done_again_are_not_left_standing(trained: Trained, small: Dataset) -> None:
    run, folder = trained()
    (folder / "checkpoint.pt").write_text("damaged")

    def tell(progress: Told) -> None:
        assert (folder / "metrics.csv").exists() == (progress.step > 4 or progress.figures is not None)

    train(run, folder, small, [Each(tell)])


def fill(disk: Path) -> Path:
    """Leave no room on a disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(65536)):
            pass
    return filler


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("place", ["events", "checkpoint"])
def test_a_full_disk_ends_the_run_in_a_clear_error_and_with_room_again_it_goes_on(
    epoch: int,
    place: str,
    small_disk: Path,
    trained: Trained,
    small: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    curves_of: Callable[[Path], Any],
) -> None:
    run, whole = trained("whole", trace=1, method="bihalf")
    folder = small_disk / "run"
    before: dict[str, bytes] = {}

    def full(*_: object) -> None:
        before.update({path.name: path.read_bytes() for path in folder.glob("*.*")})
        fill(small_disk)

    def tell(progress: Told) -> None:
        if progress.step == epoch * 4 and not progress.figures:
            full()

    with monkeypatch.context() as patch:
        if place == "checkpoint":
            told = TensorBoard.epoch

            def fill_after(*arguments: Any) -> None:
                told(*arguments)
                if arguments[3].figures["epoch"] == epoch:
                    full()

            patch.setattr(TensorBoard, "epoch", fill_after)
        name = "events.out.tfevents.*" if place == "events" else "checkpoint.pt"
        with pytest.raises(OSError, match=f"No space left on device: '{folder}/(trace/)?{name}'"):
            train(run, folder, small, [Each(tell)] if place == "events" else [])
    kept = {path.name: path.read_bytes() for path in folder.glob("*.*") if "tfevents" not in path.name}
    assert kept == {name: content for name, content in before.items() if "tfevents" not in name}
    (small_disk / "filler").unlink()
    train(run, folder, small)
    assert same_ends(folder, whole)
    assert curves_of(folder) == curves_of(whole)
    assert curves_of(folder / "trace") == curves_of(whole / "trace")


@pytest.mark.parametrize(("at", "told"), [(3, "begins this run anew"), (6, "goes on from the last checkpoint")])
def test_an_end_at_once_says_from_where_the_same_command_goes_on(
    at: int, told: str, make_run: Callable[..., Run], tmp_path: Path, small: Dataset
) -> None:
    def tell(progress: Told) -> None:
        if progress.step == at:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"the same command {told}"):
        train(make_run(), tmp_path, small, [Each(tell)])


def test_a_stop_once_the_loss_is_not_finite_says_that_it_keeps_no_steps(
    make_run: Callable[..., Run], tmp_path: Path, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return torch.full((3,), torch.nan)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(Stopped, match="the same command begins this run anew"):
        train(make_run(), tmp_path, small)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_stop_on_a_full_disk_keeps_the_last_checkpoint_and_says_so(
    small_disk: Path, trained: Trained, small: Dataset
) -> None:
    run, whole = trained("whole")
    folder = small_disk / "run"

    def tell(progress: Told) -> None:
        if progress.step == 6:
            fill(small_disk)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(
        Stopped, match=r"last checkpoint are lost .*No space left on device: .*checkpoint\.pt'.*; .*goes"
    ):
        train(run, folder, small, [Each(tell)])
    (small_disk / "filler").unlink()
    steps: list[int] = []
    train(run, folder, small, [Each(lambda progress: steps.append(progress.step))])
    assert steps[0] == 5
    assert same_ends(folder, whole)


def test_a_finished_run_started_again_trains_nothing(
    trained: Trained, small: Dataset, steps: list[tuple[float, int]]
) -> None:
    run, folder = trained()
    before = {name: (folder / name).read_bytes() for name in ("result.json", "metrics.csv", "layers.csv")}
    steps.clear()
    train(run, folder, small)
    assert steps == []
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 301}, "batch_size 301 .* 300 training images"),
        ({"batch_size": 211, "holdout": 0.3}, "batch_size 211 .* 210 training images"),
        ({"model": "conv8"}, "multiple of 16, not 8x8"),
        ({"skip": ("nothing",)}, "'nothing'"),
        ({"skip": ("0", "2", "6", "8", "10")}, "no convolution or linear layer is left"),
        ({"scope": "global", "prune_rate": 0.99999999}, "fewer than the 5 masked layers"),
        ({"method": "mpt-balanced", "prune_rate": 0.95}, "mpt-balanced on conv2: .*none of the 9 .* at most 0.9444"),
        ({"holdout": 1e-6}, "leaves one part empty"),
    ],
    ids=["batch", "batch of what is not held out", "size", "layer", "no layer", "places", "nothing kept", "holdout"],
)
def test_a_run_that_does_not_fit_its_data_is_refused_before_a_folder_is_made(
    options: dict[str, object], told: str, tmp_path: Path, small: Dataset, make_run: Callable[..., Run]
) -> None:
    with pytest.raises(ValueError, match=told):
        train(make_run(**options), tmp_path / "run", small)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_mixed_precision_learns(precision: str, trained: Trained) -> None:
    _, folder = trained(method="mpt-bihalf", precision=precision, epochs=3)
    assert json.loads((folder / "result.json").read_text())["test_top1"] > 30


def test_a_loss_scaler_leaves_gradients_unscaled_in_the_trace(trained: Trained) -> None:
    traces = [
        pd.read_csv(trained(precision, method="bihalf", precision=precision, trace=1)[1] / "trace.csv")
        for precision in ("fp32", "fp16")
    ]
    one, other = (trace["gradient_magnitude"] for trace in traces)
    assert one.iloc[:5].tolist() == pytest.approx(other.iloc[:5].tolist(), rel=0.05)


@pytest.mark.parametrize(
    "fields",
    [
        {"augment": "augmix"},
        {"augment": "augmix", "jsd": True, "augmix_severity": 6.0},
        {"augment": "gaussian", "jsd": True, "gaussian_clean": 0.0},
    ],
)
def test_a_run_on_mixed_images_goes_on_to_the_same_bits(
    fields: dict[str, Any], trained: Trained, stopped: Callable[..., tuple[Run, Path]], small: Dataset
) -> None:
    settings: dict[str, Any] = {"method": "mpt-sign", "epochs": 3, **fields}
    _, whole = trained("whole", **settings)
    run, cut = stopped(6, "cut", **settings)
    train(run, cut, small)
    _, plain = trained("plain", **{**settings, "augment": "auto", "jsd": False})
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert (plain / "metrics.csv").read_bytes() != (whole / "metrics.csv").read_bytes()


def test_the_divergence_is_added_to_the_loss_and_the_figures_are_of_the_first_view() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(15, 1, 2, 2, generator=g), torch.tensor([0, 1, 2, 0, 1])
    totals = train_step(model, None, x, y, jsd=True)
    with torch.no_grad():
        logits = model(x)
        plain = nn.functional.cross_entropy(logits[:5], y)
        expected = 5 * (plain + 12 * jensen_shannon(logits))
        hits = (logits[:5].argmax(1) == y).sum()
    torch.testing.assert_close(totals[:2], torch.stack([expected, hits.float()]))

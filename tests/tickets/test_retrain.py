"""What a training from a ticket starts from, and what it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import bake_weights, binarize_weights, create_model
from mpt_bihalf.data import Dataset, ImageSet, load_dataset
from mpt_bihalf.tickets import Ticket, retrain, run_ticket
from mpt_bihalf.tickets.retrain import retrained_table, retraining_run
from mpt_bihalf.training import train_step

ARCHITECTURE: dict[str, Any] = {"name": "resnet20", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 0.5}


@pytest.fixture(scope="module")
def ticket() -> Ticket:
    """Of a residual network whose first and last layer are real-valued; unlike shares of +1."""
    model = binarize_weights(
        create_model(**ARCHITECTURE, seed=0), "mpt-bihalf", 0.7, 0.3, skip=("first", "last"), seed=0
    )
    return Ticket.of(model, ARCHITECTURE)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """As many as the tests can have quickly."""
    data = load_dataset("digits")
    return replace(data, train=data.train.take(torch.arange(128)), test=data.test.take(torch.arange(60)))


Starts = list[dict[str, Tensor]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Starts, list[nn.Module], Any]]:
    """The plain state of each network before its first step, the networks after it, and the table."""

    def do(ticket: Ticket, data: Dataset, trials: int = 1, **chosen: Any) -> tuple[Starts, list[nn.Module], Any]:
        begun: Starts = []
        trained: list[nn.Module] = []

        def look(model: nn.Module, *arguments: Any, **options: Any) -> Tensor:
            if not any(model is other for other in trained):
                trained.append(model)
                begun.append({name: value.clone() for name, value in bake_weights(model).state_dict().items()})
            return train_step(model, *arguments, **options)

        monkeypatch.setattr(retrain, "train_step", look)
        run = retraining_run(ticket, "digits", **{"epochs": 1, "batch_size": 64} | chosen)
        return begun, trained, retrained_table(ticket, data, run, trials)

    return do


def test_networks_start_from_mask_and_signs_and_their_controls(ticket: Ticket, digits: Dataset, started: Any) -> None:
    (own, signs, moved, dense), _, _ = started(ticket, digits)
    assert len(ticket.layers) > 10
    for layer, known in ticket.layers.items():
        b, name = known.binary, f"{layer}.weight"
        assert torch.equal(own[name].sign(), b.float())
        assert torch.equal(signs[name].sign().abs(), b.abs().float()) and not torch.equal(signs[name].sign(), b.float())
        assert not torch.equal(moved[name] != 0, b != 0)
        for start in (own, signs, moved):
            assert ((start[name] > 0).sum(), (start[name] < 0).sum()) == ((b > 0).sum(), (b < 0).sum())
        assert torch.equal(own[name].abs(), signs[name].abs())
        both = (b != 0) & (moved[name] != 0)
        assert torch.equal(own[name].abs()[both], moved[name].abs()[both])
        assert dense[name].all()
    name, known = max(ticket.layers.items(), key=lambda item: item[1].kept)
    kept = known.kept / known.binary.numel() * known.binary[0].numel()
    size = own[f"{name}.weight"][known.binary != 0].square().mean().sqrt().item()
    assert size == pytest.approx(sqrt(2 / kept), rel=0.1)
    for norm, weight in own.items():
        if ".running_var" in norm or norm.endswith("bn1.weight"):
            assert (weight == 1).all(), norm


def test_what_is_not_pruned_is_trained_and_what_is_stays_zero(ticket: Ticket, digits: Dataset, started: Any) -> None:
    begun, trained, _ = started(ticket, digits)
    for start, model in zip(begun, trained, strict=True):
        end = bake_weights(model).state_dict()
        for name, _ in create_model(**ARCHITECTURE).named_parameters():
            if start[name].any():  # the shifts of norms begin at 0, as pruned weights do
                moved = end[name] != start[name]
                assert moved.any() and not moved[(start[name] == 0)].any(), name


def test_a_seed_gives_the_same_networks_and_another_gives_others(ticket: Ticket, digits: Dataset, started: Any) -> None:
    first, _, table = started(ticket, digits)
    again, _, same = started(ticket, digits)
    other, _, _ = started(ticket, digits, seed=1)
    assert table == same
    for one, two, three in zip(first, again, other, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert not any(torch.equal(one[f"{name}.weight"], three[f"{name}.weight"]) for name in ticket.layers)


def test_magnitudes_are_not_those_that_the_mask_was_learned_on(digits: Dataset, started: Any) -> None:
    architecture = {"name": "conv2", "in_channels": 1, "image_size": 8, "width": 0.25}
    model = binarize_weights(create_model(**architecture, seed=0), "mpt-sign", 0.5, seed=0)
    before = model[0].parametrizations.weight.original.abs()  # type: ignore[union-attr]
    (own, *_), _, _ = started(Ticket.of(model, architecture), digits, seed=0)
    kept = own["0.weight"] != 0
    assert abs(torch.corrcoef(torch.stack([own["0.weight"].abs()[kept], before[kept]]))[0, 1]) < 0.5


def test_several_trials_are_told_by_mean_and_deviation(
    ticket: Ticket, digits: Dataset, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = [50.0, 60.0, 70.0] * 3 + [50.0, None, 70.0]
    given = iter(figures)
    monkeypatch.setattr(retrain, "_trained_top1", lambda *_: next(given))
    _, _, table = started(ticket, digits, trials=3)
    assert [row[-1] for row in table.rows] == [f"{mean(figures[:3]):.2f} ± {stdev(figures[:3]):.2f}"] * 3 + ["diverged"]


def test_a_training_that_diverges_is_told_to(ticket: Ticket, digits: Dataset, started: Any) -> None:
    _, _, table = started(ticket, digits, lr=1e30)
    assert [row[-1] for row in table.rows] == ["diverged"] * 4


def test_for_other_classes_the_last_layer_is_fresh_and_dense(digits: Dataset, started: Any) -> None:
    architecture = {"name": "conv2", "in_channels": 1, "image_size": 8, "width": 0.25}
    ticket = Ticket.of(binarize_weights(create_model(**architecture, seed=0), "mpt-sign", 0.9, seed=0), architecture)
    parts = []
    for part in (digits.train, digits.test):
        assert isinstance(part, ImageSet)
        parts.append(ImageSet(part.images, part.labels % 3))
    three = replace(digits, train=parts[0], test=parts[1], classes=("0", "1", "2"))
    (own, signs, *_), _, _ = started(ticket, three)
    *body, last = (f"{name}.weight" for name in ticket.layers)
    assert len(own[last]) == 3 and own[last].all() and torch.equal(own[last], signs[last])
    assert all(
        torch.equal(own[name] != 0, layer.binary != 0)
        for name, layer in zip(body, ticket.layers.values(), strict=False)
    )


def test_a_run_tells_how_long_to_train_but_not_at_what_rate(finished: Callable[..., Path], ticket: Ticket) -> None:
    told = run_ticket(finished(batch_size=100, augment="standard"))
    run = retraining_run(told, "digits")
    assert (run.epochs, run.batch_size, run.augmentation) == (1, 100, (True, True))
    assert (run.method, run.model, run.lr, run.schedule) == ("dense", "conv2", retrain.LEARNING_RATE, "cosine")
    assert retraining_run(told, "digits", epochs=7, lr=0.3, batch_size=None).epochs == 7
    assert retraining_run(ticket, "digits").model == "resnet20"

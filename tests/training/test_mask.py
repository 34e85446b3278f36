"""Runs under a mask that is fixed before training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mpt_bihalf.data import Dataset
from mpt_bihalf.data.batches import ClassBatches
from mpt_bihalf.given_masks import fixed_masks
from mpt_bihalf.initial import initial_masks
from mpt_bihalf.masks import find_initial_mask
from mpt_bihalf.sweep import load_run
from mpt_bihalf.tickets import load_ticket, save_ticket
from mpt_bihalf.tickets.file import network_of
from mpt_bihalf.training import Run, train
from mpt_bihalf.training.build import build_model
from mpt_bihalf.training.checkpoint import load_checkpoint
from mpt_bihalf.weights import binary_weights
from tests.reference import one_line_error

RULES = ["random", "magnitude", "snip", "grasp", "synflow"]
Trained = Callable[..., tuple[Run, Path]]


def network(run: Run, folder: Path, data: Dataset) -> torch.nn.Module:
    model = build_model(run, data)
    load_checkpoint(folder, run, model, None, len(data.train) // run.batch_size)
    return model.eval()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("dense", {}),
        ("sign", {}),
        ("bihalf", {}),
        ("rbnn", {}),
        ("mpt-sign", {}),
        ("mpt-bihalf", {"train_affine": True, "activations": "approx"}),
    ],
)
def test_the_mask_is_that_of_the_drawn_network_and_stays(
    rule: str, method: str, fields: dict[str, Any], trained: Trained, small: Dataset
) -> None:
    if rule == "grasp" and fields:
        fields = {}
    run, folder = trained(method=method, mask=rule, prune_rate=0.8, epochs=2, lr=0.02, **fields)
    model, drawn = network(run, folder, small), build_model(run, small)
    images = find_initial_mask(rule).images
    data = ClassBatches(small, images, run.batch_size, run.seed)
    expected = initial_masks(drawn, rule, 0.8, data, seed=run.seed)
    found = fixed_masks(model)
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(found[name], mask)
        used = binary_weights(model)[name] if method != "dense" else model.get_submodule(name).weight
        assert not used[~mask].any()
        assert (used[mask] != 0).all()
    before, after = dict(drawn.named_parameters()), dict(model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    if method.startswith("mpt") and not fields:
        assert not moved
    elif fields:
        assert moved and all("weight.original" not in name and "scores" not in name for name in moved)
    else:
        assert any(name.endswith("weight.original") for name in moved)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["dense", "bihalf", "rbnn", "mpt-balanced"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    rule: str, method: str, trained: Trained, stopped: Trained, small: Dataset
) -> None:
    fields: dict[str, Any] = {"method": method, "mask": rule, "prune_rate": 0.7, "epochs": 3, "lr": 0.02}
    run, whole = trained("whole", **fields)
    _, cut = stopped(4, **fields)
    train(run, cut, small)
    for file in ("result.json", "metrics.csv", "layers.csv"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
    first, second = (network(run, folder, small).state_dict() for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("rule", RULES)
def test_a_ticket_of_the_run_gives_its_very_outputs(
    rule: str, trained: Trained, small: Dataset, tmp_path: Path
) -> None:
    run, folder = trained(method="bihalf", mask=rule, prune_rate=0.7, epochs=1, lr=0.02)
    model = network(run, folder, small)
    save_ticket(model, tmp_path / "ticket", architecture=network_of(run, 10, 1, 8))
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_ticket(tmp_path / "ticket")(x), model(x))


def test_layers_that_lose_all_are_named_in_the_result(trained: Trained) -> None:
    _, folder = trained(method="sign", mask="magnitude", prune_rate=0.999, epochs=2)
    note = json.loads((folder / "result.json").read_text())["note"]
    assert note.startswith("the mask keeps nothing of layer")
    assert note.endswith("; the network gives the same logits for every test image")
    layers = pd.read_csv(folder / "layers.csv")
    empty = layers[(layers["epoch"] == 2) & (layers["kept"] == 0)]["layer"].astype(str)
    assert len(empty) and all(f"'{name}'" in note for name in empty[:3])


def test_the_images_are_so_many_of_each_class_and_the_same_each_time(small: Dataset) -> None:
    batches = ClassBatches(small, 6, 16, seed=3)
    first, second = [*batches], [*batches]
    assert len(first) == len(second) and max(len(y) for _, y in first) <= 16
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))
    labels = torch.cat([y for _, y in first])
    assert torch.equal(labels.bincount(minlength=10), torch.full((10,), 6))
    assert torch.equal(labels[:30].bincount(minlength=10), torch.full((10,), 3))
    other = torch.cat([x for x, _ in ClassBatches(small, 6, 16, seed=4)])
    assert not torch.equal(torch.cat([x for x, _ in first]), other)
    assert [len(y) for _, y in ClassBatches(small, 0, 16, seed=3)] == [1]
    few = torch.cat([y for _, y in ClassBatches(small, 10**6, 64, seed=3)])
    assert torch.equal(few.bincount(minlength=10), small.train.labels.bincount(minlength=10))


def test_a_finished_run_is_loaded(tmp_path: Path) -> None:
    run = Run(method="dense", mask="synflow", prune_rate=0.9, width=0.1, epochs=1, device="cpu", threads=1)
    run = run.resolved()
    train(run, tmp_path / run.name, callbacks=[])
    _, model, *_ = load_run(tmp_path / run.name)
    total = sum(int(mask.sum()) for mask in fixed_masks(model).values())
    assert total == sum(int((model.get_submodule(name).weight != 0).sum()) for name in fixed_masks(model))


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("mpt-sign", {"redraw": "iterand", "redraw_every": 3}),
        ("mpt-bihalf", {"redraw": "iterand", "redraw_every": 3, "scope": "global"}),
        ("mpt-balanced", {"redraw": "iterand", "redraw_every": 3}),
        ("mpt-sign", {"redraw": "recycle", "redraw_every": 1}),
        ("mpt-bihalf", {"redraw": "recycle", "redraw_every": 1, "compute": "sparse"}),
    ],
)
def test_a_run_with_redrawn_weights_goes_on_to_the_same_bits(
    method: str,
    fields: dict[str, Any],
    trained: Trained,
    stopped: Callable[..., tuple[Run, Path]],
    small: Dataset,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"method": method, "prune_rate": 0.6, "epochs": 3, **fields}
    run, folder = trained(**settings)
    whole, drawn = network(run, folder, small), build_model(run, small)
    for name in whole.state_dict():
        if name.endswith("weight.original"):
            assert not torch.equal(whole.state_dict()[name], drawn.state_dict()[name])
    for at in (2, 4, 7):  # before, at the end of, and within an epoch with a redraw
        _, cut = stopped(at, str(at), **settings)
        train(run, cut, small)
        found = network(run, cut, small).state_dict()
        assert all(torch.equal(found[name], value) for name, value in whole.state_dict().items())
        assert (cut / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    save_ticket(whole, tmp_path / "ticket", network_of(run, 10, 1, 8))
    found_signs = binary_weights(whole)
    for name, layer in load_ticket(tmp_path / "ticket").named_modules():
        if name in found_signs:
            assert torch.equal(layer.weight.sign(), found_signs[name])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"method": "bihalf"}, "redraw is for frozen weights under learned scores, and bihalf trains weights"),
        ({"method": "dense"}, "redraw is for frozen weights under learned scores, and dense trains weights"),
        ({"mask": "snip"}, "here no scores are trained"),
        ({"learn_mask": False}, "here no scores are trained"),
        ({"redraw": "recycle", "method": "mpt-balanced"}, "recycle copies weights, and the signs of mpt-balanced"),
        ({"graph": True}, "graph keeps the signs of frozen weights"),
    ],
)
def test_redraws_that_cannot_be_are_told_in_one_line(fields: dict[str, Any], told: str) -> None:
    with one_line_error(told):
        Run(**{"method": "mpt-sign", "redraw": "iterand", **fields})


def test_a_run_too_short_to_redraw_says_so(make_run: Callable[..., Run], small: Dataset, tmp_path: Path) -> None:
    for redraw, every in (("iterand", 9), ("recycle", 2)):
        with one_line_error(f"redraw_every {every}: nothing would be redrawn in 2 epochs, 8 steps"):
            train(make_run(method="mpt-sign", redraw=redraw, redraw_every=every), tmp_path / redraw, small)

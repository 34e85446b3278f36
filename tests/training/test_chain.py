"""Iterative pruning: rounds as a chain of runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf.data import Dataset
from mpt_bihalf.given_masks import fixed_masks, stored_weight
from mpt_bihalf.rounds import trained_masks
from mpt_bihalf.tickets import load_ticket, save_ticket
from mpt_bihalf.tickets.file import network_of
from mpt_bihalf.training import Callback, Progress, Run, train
from mpt_bihalf.training.build import build_model, build_network
from mpt_bihalf.training.chain import parent_of, rounds_before
from mpt_bihalf.training.checkpoint import load_checkpoint
from tests.reference import one_line_error

MakeRun = Callable[..., Run]


class Weights(Callback):
    """The weights as they are at the beginning of a run, and after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.model: nn.Module | None = None

    def run_begins(self, run: Run, folder: Path, progress: Progress, model: nn.Module | None = None) -> None:
        self.model = model
        self.look()

    def step(self, run: Run, progress: Progress) -> None:
        self.look()

    def look(self) -> None:
        assert self.model
        self.seen.append(weights_of(self.model))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """All that is trained, and batch norm's statistics; the latent weight of a layer by the layer's name."""
    latent = {
        name: stored_weight(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    others = {name: p for name, p in model.named_parameters() if not name.endswith((".weight", ".original"))}
    others |= {name: b for name, b in model.named_buffers() if "running" in name}
    return {name: p.detach().clone() for name, p in {**latent, **others}.items() if p is not None}


def chain(run: Run, place: Path, data: Dataset, **of_runs: Any) -> list[tuple[Run, Weights, nn.Module]]:
    """Train a run after its rounds, each in its folder in `place`: what each began and ended with."""
    done = []
    for each in (*rounds_before(run), run):
        weights = Weights()
        train(each, place / each.name, data, [weights])
        done.append((each, weights, network(each, place / each.name, data)))
    return done


def network(run: Run, folder: Path, data: Dataset) -> nn.Module:
    model = build_model(run, data)
    load_checkpoint(folder, run, model, None, len(data.train) // run.batch_size)
    return model.eval()


def test_rounds_prune_a_share_of_what_is_left_and_end_at_the_asked_rate(make_run: MakeRun) -> None:
    run = make_run(method="bihalf", mask="imp", prune_rate=0.7)
    rates = [each.prune_rate for each in rounds_before(run)]
    assert rates == [0, 0.2, 0.36, 0.488, 0.5904, 0.67232]
    deep = rounds_before(replace(run, prune_rate=0.99))
    kept = {number: round(1 - deep[number].prune_rate, 6) for number in (1, 5, 10, 15, 20)}
    assert kept == {1: 0.8, 5: 0.32768, 10: 0.107374, 15: 0.035184, 20: 0.011529}
    # Another asked rate shares the rounds that come before it.
    assert deep[: len(rates)] == rounds_before(run)
    assert rounds_before(replace(run, prune_rate=0.36)) == rounds_before(run)[:2]


def test_round_0_is_the_unpruned_run(make_run: MakeRun) -> None:
    for method in ("dense", "sign", "bihalf", "rbnn"):
        for fields in ({}, {"rewind": "3it"}, {"imp_control": "redrawn", "imp_share": 0.5}):
            run = make_run(method=method, mask="imp", prune_rate=0.6, **fields)
            assert rounds_before(run)[0] == make_run(method=method)
            assert rounds_before(run)[0].hash == make_run(method=method).hash


def test_rounds_compute_as_they_would_by_themselves(make_run: MakeRun) -> None:
    sparse = replace(make_run(method="bihalf", mask="imp", prune_rate=0.9, compute="sparse"))
    assert [each.compute for each in rounds_before(sparse)[:3]] == ["dense", "dense", "sparse"]
    assert rounds_before(sparse)[0] == make_run(method="bihalf")


def test_equal_runs_are_equal(make_run: MakeRun) -> None:
    plain = make_run(method="sign", mask="imp", prune_rate=0.5)
    assert make_run(method="sign", mask="imp", prune_rate=0.5, imp_criterion="cutoff", rewind="0ep") == plain
    shot = make_run(method="sign", mask="imp", prune_rate=0.5, imp_control="one-shot")
    assert shot == make_run(method="sign", mask="imp", prune_rate=0.5, imp_share=1)
    assert [each.prune_rate for each in rounds_before(shot)] == [0]
    assert make_run(method="sign", imp_share=0.5, rewind="1ep", imp_control="shuffled") == make_run(method="sign")
    assert parent_of(make_run(method="sign", mask="snip")) is None


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("dense", {}),
        ("dense", {"rewind": "3it"}),
        ("bihalf", {"imp_criterion": "cutoff"}),
        ("bihalf", {"rewind": "1ep", "scope": "layer"}),
        ("xnor++", {"activations": "clip", "block": "norm-first"}),
        ("sign", {"model": "resnet20", "image_size": 16, "skip": ("first", "last"), "rewind": "5it"}),
    ],
)
def test_each_round_trains_the_rewound_weights_under_what_is_left(
    method: str, fields: dict[str, Any], make_run: MakeRun, small: Dataset, tmp_path: Path
) -> None:
    run = make_run(method=method, mask="imp", imp_share=0.4, prune_rate=0.7, lr=0.02, **fields)
    data = replace(small) if not run.image_size else small_of(run.image_size)
    done = chain(run, tmp_path, data)
    assert [each.prune_rate for each, _, _ in done] == [0, 0.4, 0.64, 0.7]
    steps = {"": 0, "3it": 3, "1ep": 4, "5it": 5}[run.rewind]
    start = done[0][1].seen[steps]
    before: dict[str, Tensor] | None = None
    for (_, _, model_before), (each, weights, model) in pairwise(done):
        began, masks = weights.seen[0], fixed_masks(model)
        learned = {name for name in start if name.endswith("alpha")}  # of what is kept now
        assert all(torch.equal(began[name], start[name]) for name in start if name not in learned)
        names = [*masks]
        expected = trained_masks(model_before, each.prune_rate, each.imp_criterion, each.scope, names)
        assert masks.keys() == expected.keys()
        assert all(torch.equal(masks[name], expected[name]) for name in masks)
        assert before is None or not any((masks[name] & ~before[name]).any() for name in masks)
        before = masks
        if each.scope == "global":
            n = sum(mask.numel() for mask in masks.values())
            assert sum(int(mask.sum()) for mask in masks.values()) == n - floor(each.prune_rate * n + 0.5)
    parents = [json.loads((tmp_path / each.name / "parent.json").read_text()) for each, _, _ in done[1:]]
    assert parents == [{"run": each.name} for each, _, _ in done[:-1]]


def test_learned_scales_begin_anew_at_what_is_kept(make_run: MakeRun, small: Dataset, tmp_path: Path) -> None:
    run = make_run(method="bnn+", mask="imp", imp_share=0.5, prune_rate=0.5, rewind="2it", lr=0.02)
    _, (_, weights, model) = chain(run, tmp_path, small)
    began, masks = weights.seen[0], fixed_masks(model)
    for name, mask in masks.items():
        alpha = began[f"{name}.parametrizations.weight.0.alpha"].flatten()
        for f, (w, kept) in enumerate(zip(began[name].flatten(1), mask.flatten(1), strict=True)):
            if kept.any():
                ordered = w[kept].abs().sort().values
                low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
                assert low - 1e-6 <= alpha[f] <= high + 1e-6


def small_of(size: int) -> Dataset:
    from mpt_bihalf.data import ImageSet, load_dataset

    digits = load_dataset("digits", image_size=size)
    assert isinstance(digits.train, ImageSet)
    train_images = ImageSet(digits.train.images[:300], digits.train.labels[:300])
    return replace(digits, train=train_images)


def test_controls_change_one_thing_of_the_last_round(make_run: MakeRun, small: Dataset, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "bihalf", "mask": "imp", "imp_share": 0.5, "prune_rate": 0.7, "lr": 0.02}
    plain = chain(make_run(**settings), tmp_path, small)[-1]
    masks, start = fixed_masks(plain[2]), plain[1].seen[0]
    for control in ("shuffled", "redrawn", "one-shot"):
        _, weights, model = chain(make_run(**settings, imp_control=control), tmp_path, small)[-1]
        other, began = fixed_masks(model), weights.seen[0]
        equal = {name: torch.equal(other[name], masks[name]) for name in masks}
        assert all(equal.values()) == (control == "redrawn")
        if control == "shuffled":
            assert not any(equal[name] for name in masks if 0 < masks[name].float().mean() < 1)
            assert all(other[name].sum() == masks[name].sum() for name in masks)
        drawn_anew = {name for name in masks if not torch.equal(began[name], start[name])}
        assert drawn_anew == ({*masks} if control == "redrawn" else set())
        assert sum(mask.sum() for mask in other.values()) == sum(mask.sum() for mask in masks.values())


@pytest.mark.parametrize("rewind", ["", "6it"])
def test_a_round_goes_on_to_the_same_bits(
    rewind: str, make_run: MakeRun, stopped: Callable[..., tuple[Run, Path]], small: Dataset, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"method": "bihalf", "mask": "imp", "prune_rate": 0.2, "rewind": rewind}
    run = make_run(**settings)
    (_, _, _), (_, _, whole) = chain(run, tmp_path, small)
    for at in (1, 6):
        place = f"{at}/{run.name}"
        (tmp_path / str(at)).mkdir()
        (tmp_path / str(at) / make_run(method="bihalf").name).symlink_to(tmp_path / make_run(method="bihalf").name)
        stopped(at, place, **settings)
        (tmp_path / str(at) / make_run(method="bihalf").name).unlink()  # what has begun needs no other run
        train(run, tmp_path / place, small)
        for name in ("metrics.csv", "layers.csv", "result.json", "parent.json"):
            assert (tmp_path / place / name).read_bytes() == (tmp_path / run.name / name).read_bytes(), name
        found = network(run, tmp_path / place, small)
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), whole.parameters(), strict=True))


def test_a_ticket_of_a_round_is_the_network(make_run: MakeRun, small: Dataset, tmp_path: Path) -> None:
    run = make_run(method="bihalf", mask="imp", prune_rate=0.5, imp_share=0.5)
    model = chain(run, tmp_path, small)[-1][2]
    save_ticket(model, tmp_path / "ticket", network_of(run, 10, 1, 8))
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(load_ticket(tmp_path / "ticket").eval()(x), model(x), atol=1e-5)


def test_a_round_without_the_one_before_it_says_so(make_run: MakeRun, small: Dataset, tmp_path: Path) -> None:
    run = make_run(method="bihalf", mask="imp", prune_rate=0.5, imp_share=0.5)
    with one_line_error("the round before, which this one prunes, is not there, or has no checkpoint: conv2"):
        train(run, tmp_path / run.name, small)
    before = rounds_before(run)[0]
    train(before, tmp_path / before.name, small)
    checkpoint = tmp_path / before.name / "checkpoint.pt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-500])
    with one_line_error("the round before, which this one prunes: .*is no checkpoint to go on from"):
        train(run, tmp_path / run.name, small)
    assert not (tmp_path / run.name / "result.json").exists()
    checkpoint.write_bytes(content)
    late = replace(run, rewind="9it")
    with one_line_error("rewind 9it: the run has 8 steps"):
        train(late, tmp_path / late.name, small)
    assert not (tmp_path / late.name).exists()


def test_on_the_meta_device(make_run: MakeRun) -> None:
    for method in ("dense", "bihalf"):
        with torch.device("meta"):
            model = build_network(make_run(method=method, mask="imp", prune_rate=0.5), 10, 1, 8)
            model(torch.empty(2, 1, 8, 8)).sum().backward()
        assert fixed_masks(model).keys()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"method": "mpt-sign"}, "imp prunes trained weights, and mpt-sign trains scores"),
        ({"method": "bop"}, "imp prunes trained weights, and bop trains signs"),
        ({"method": "magnitude-sign"}, "has a mask of its own"),
        ({"imp_share": 0.0}, r"imp_share must lie in \[0.01, 1\], not 0.0"),
        ({"imp_share": 1.5}, r"imp_share must lie in \[0.01, 1\], not 1.5"),
        ({"imp_share": float("nan")}, "imp_share must lie in"),
        ({"rewind": "5"}, "rewind '5': write steps as 500it, or epochs as 2ep"),
        ({"rewind": "-5it"}, "rewind '-5it': write"),
        ({"rewind": "3ep"}, "rewind 3ep: the run has 2 epochs"),
        ({"imp_criterion": "size"}, "unknown imp_criterion 'size'"),
        ({"imp_control": "random"}, "unknown imp_control 'random'; known: shuffled, redrawn, one-shot"),
        ({"imp_criterion": "cutoff", "method": "dense"}, "no cut-off is known of the weights of dense"),
        ({"imp_criterion": "cutoff", "method": "rbnn"}, "no cut-off is known of the weights of rbnn"),
        ({"prune_rate": 0.0}, "imp prunes: give it a prune_rate above 0"),
        ({"prune_epochs": 2}, "prune_epochs is for masks that are learned"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(fields: dict[str, Any], match: str, make_run: MakeRun) -> None:
    with one_line_error(match):
        make_run(**{"method": "bihalf", "mask": "imp", "prune_rate": 0.9, **fields})


def test_rounds_after_one_that_has_diverged_have_diverged(make_run: MakeRun, small: Dataset, tmp_path: Path) -> None:
    run = make_run(method="bihalf", mask="imp", imp_share=0.5, prune_rate=0.7, lr=1e30)
    for each in (*rounds_before(run), run):
        result = train(each, tmp_path / each.name, small)
        assert result["status"].startswith("diverged: ")
    first, second, _ = (*rounds_before(run), run)
    told = json.loads((tmp_path / second.name / "result.json").read_text())["status"]
    assert told == f"diverged: the round before has diverged, {first.name}"
    assert (tmp_path / second.name / "parent.json").exists()

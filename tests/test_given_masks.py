"""Masks from elsewhere: scores that start from them, and training under them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from mpt_bihalf import (
    METHODS,
    bake_weights,
    binarize_weights,
    binary_layers,
    binary_weights,
    create_model,
    fix_masks,
    load_ticket,
    save_ticket,
    set_prune_rate,
    start_scores,
    ticket_weights,
)
from tests.reference import SCORE_METHODS, half_up, one_line_error

SCOPED = [("mpt-sign", "layer"), ("mpt-bihalf", "filter"), ("mpt-bihalf", "global"), ("mpt-balanced", "layer")]


def small() -> nn.Sequential:
    """Two convolutions, a norm and a linear layer, for images of 3x4x4."""
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(45, 4))


def small_input() -> Tensor:
    return torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(9))


def kept_by(model: nn.Module) -> dict[str, Tensor]:
    return {name: binary != 0 for name, binary in binary_weights(model).items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name] != 0) for name in ours)


def random_masks(seed: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: layer.weight for name, layer in small().named_children() if name in "035"}
    return {name: torch.rand(weight.shape, generator=generator) < 0.4 for name, weight in weights.items()}


def scores_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: part.scores.detach() for name, part, _ in binary_layers(model) if part.scores is not None}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr, momentum=0.9, weight_decay=1e-2)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images[:64], dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(data.target[:64])


def digits_network(seed: int) -> nn.Module:
    return create_model("conv2", in_channels=1, image_size=8, seed=seed, width=0.25)


# Scores


@pytest.mark.parametrize("scope", ["layer", "filter", "global"])
def test_scores_start_from_the_mask_of_a_ticket_of_another_seed(tmp_path: Path, scope: str, digits: Any) -> None:
    trained = binarize_weights(digits_network(0), "mpt-bihalf", 0.8, scope=scope, seed=0)
    optimizer = sgd(trained)
    for _ in range(2):
        step(trained, optimizer, *digits)
    save_ticket(trained, tmp_path / "a")
    found = ticket_weights(tmp_path / "a")
    theirs = binary_weights(trained)
    assert all(
        found[name].dtype == torch.int8 and torch.equal(found[name], theirs[name].to(torch.int8)) for name in theirs
    )
    model = binarize_weights(digits_network(1), "mpt-bihalf", 0.8, scope=scope, seed=1)
    assert not same(kept_by(model), found)
    start_scores(model, found)
    assert same(kept_by(model), found)
    step(model, sgd(model, lr=1.0), *digits)  # and they learn
    assert not same(kept_by(model), found)


@pytest.mark.parametrize(("method", "scope"), SCOPED)
def test_started_scores_are_the_old_ones_in_other_places(method: str, scope: str) -> None:
    other = binarize_weights(small(), method, 0.6, scope=scope, seed=0)
    model = binarize_weights(small(), method, 0.6, scope=scope, seed=0 if method == "mpt-balanced" else 1)
    for values in scores_of(model).values():
        values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(values.numel())))
    before, masks = {n: s.clone() for n, s in scores_of(model).items()}, kept_by(other)
    start_scores(model, masks)
    after = scores_of(model)
    assert same(kept_by(model), masks)
    flat = [torch.cat([s.flatten() for s in scores.values()]) for scores in (before, after)]
    groups = [flat] if scope == "global" else [[before[n].flatten(), after[n].flatten()] for n in before]
    assert all(torch.equal(*(part.sort().values for part in group)) for group in groups)
    for name, mask in masks.items():  # in the order of before, among the kept and among the others
        for places in (mask, ~mask):
            ranks = [values[name][places].abs().argsort() for values in (before, after)]
            assert torch.equal(*ranks)


@pytest.mark.parametrize(("rate", "contains"), [(0.3, True), (0.9, False)])
def test_at_another_rate_the_mask_is_a_superset_or_a_subset(rate: float, contains: bool) -> None:
    masks = kept_by(binarize_weights(small(), "mpt-sign", 0.6, seed=0))
    model = binarize_weights(small(), "mpt-sign", rate, seed=1)
    start_scores(model, masks)
    for name, mask in kept_by(model).items():
        larger, smaller = (mask, masks[name]) if contains else (masks[name], mask)
        assert not (smaller & ~larger).any() and larger.sum() > smaller.sum()
    set_prune_rate(model, 0.6)
    assert same(kept_by(model), masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_mask_is_taken_exactly_where_all_scores_are_equal(dtype: torch.dtype, value: float) -> None:
    layer = nn.Linear(20, 10, bias=False).to(dtype)
    model = binarize_weights(nn.Sequential(layer), "mpt-sign", 0.5, seed=0)
    (scores,) = scores_of(model).values()
    scores.copy_(torch.where(torch.arange(20) % 2 == 0, value, -value).expand(10, 20))
    mask = torch.zeros(200, dtype=torch.bool).index_fill_(0, torch.arange(100), True).view(10, 20)
    start_scores(model, {"0": mask})
    assert same(kept_by(model), {"0": mask})


def test_a_composed_method_starts_from_a_mask_too() -> None:
    method = replace(METHODS["mpt-sign"], name="composed", binarizer=METHODS["irnet"].binarizer)
    masks = kept_by(binarize_weights(small(), method, 0.6, seed=0))
    model = binarize_weights(small(), method, 0.6, seed=1)
    start_scores(model, {name: mask.numpy() for name, mask in masks.items()})  # type: ignore[misc]
    assert same(kept_by(model), masks)


# Training under a mask


def test_real_weights_are_trained_under_a_mask_and_what_is_pruned_stays_zero(digits: Any) -> None:
    masks = kept_by(binarize_weights(digits_network(0), "mpt-sign", 0.7, seed=0))
    model = digits_network(1)
    fix_masks(model, masks)
    optimizer, losses = sgd(model, lr=0.2), []
    for _ in range(15):
        losses.append(step(model, optimizer, *digits))
        for name, mask in masks.items():
            layer: Any = model.get_submodule(name)
            assert not layer.weight[~mask].any() and layer.weight[mask].all()
            gradient = layer.parametrizations.weight.original.grad
            assert not gradient[~mask].any() and gradient[mask].any()
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("p_pos", [0.5, 0.3])
def test_the_bit_ratio_over_the_kept_is_exact_at_every_step(p_pos: float, digits: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    model = binarize_weights(digits_network(1), "bihalf", p_pos=p_pos, seed=1)
    masks = {name: torch.rand(w.shape, generator=generator) < 0.3 for name, _, w in binary_layers(model)}
    fix_masks(model, masks)
    optimizer, signs = sgd(model), []
    for _ in range(4):
        binary = binary_weights(model)
        signs.append(binary)
        assert same({name: b != 0 for name, b in binary.items()}, masks)
        for name, b in binary.items():
            rows = zip(b.flatten(1), masks[name].flatten(1).sum(1).tolist(), strict=True)
            assert all(int((row > 0).sum()) == half_up(p_pos, kept) for row, kept in rows)
        step(model, optimizer, *digits)
    assert not all(torch.equal(signs[0][name], signs[-1][name]) for name in masks)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_mask_stands_in_the_place_of_the_methods_and_is_baked(
    method: str, memory_format: torch.memory_format
) -> None:
    model = small().to(memory_format=memory_format)
    masks = random_masks()
    fix_masks(binarize_weights(model, method, 0.5, seed=0), masks)
    optimizer = sgd(model, lr=0.5)
    for _ in range(2):
        step(model, optimizer, small_input(), torch.arange(8) % 4)
    model.eval()
    plain = bake_weights(model)
    assert torch.equal(plain(small_input()), model(small_input()))
    assert b"mpt_bihalf" not in pickle.dumps(plain)
    for name, mask in masks.items():
        weight = plain.get_submodule(name).weight
        assert torch.equal(weight != 0, mask)
        if method in ("sign", "bihalf"):  # sqrt(2 / (k D)) of the kept share k
            alpha = (2 * len(mask) / mask.sum()).sqrt()
            assert torch.allclose(weight[mask].abs(), alpha, rtol=1e-6)


def test_a_fixed_mask_holds_whatever_the_rate_and_the_scores_are() -> None:
    model = binarize_weights(small(), "mpt-bihalf", 0.5, scope="global", seed=0)
    fix_masks(model, random_masks())
    set_prune_rate(model, 0.9)
    for values in scores_of(model).values():
        values.neg_().add_(1)
    assert same(kept_by(model), random_masks())
    fix_masks(model, random_masks(6))
    assert same(kept_by(model), random_masks(6))


@pytest.mark.parametrize("method", ["dense", "bihalf", "mpt-sign"])
def test_a_mask_is_part_of_copies_and_states(method: str) -> None:
    model = binarize_weights(small(), method, seed=0).eval()
    fix_masks(model, random_masks())
    expected = model(small_input())
    twin = deepcopy(model)
    fix_masks(model, random_masks(6))
    assert torch.equal(twin(small_input()), expected) and not torch.equal(model(small_input()), expected)
    file = io.BytesIO()
    torch.save(twin.state_dict(), file)
    file.seek(0)
    model.load_state_dict(pickle.loads(pickle.dumps(torch.load(file))))
    assert torch.equal(model(small_input()), expected)
    twin.half()
    masks = [value for name, value in twin.state_dict().items() if name.endswith("fixed_mask")]
    assert len(masks) == 3 and all(mask.dtype == torch.bool for mask in masks)


@pytest.mark.parametrize("method", ["dense", "bihalf", "irnet", "mpt-bihalf"])
def test_a_step_under_a_mask_never_waits_for_a_device(method: str) -> None:
    model = binarize_weights(small(), method, seed=0)
    fix_masks(model, random_masks())
    model.to("meta")
    x, y = torch.empty(8, 3, 4, 4, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    optimizer = sgd(model)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_skipped_layers_may_be_masked_and_need_not_be(tmp_path: Path) -> None:
    model = binarize_weights(small(), "bihalf", skip="first", seed=0)
    masks = random_masks()
    fix_masks(model, {name: masks[name] for name in "35"})
    assert model[0].weight.all()
    fix_masks(model, masks)
    assert torch.equal(model[0].weight != 0, masks["0"])
    save_ticket(model, tmp_path / "a")
    assert same({name: b != 0 for name, b in ticket_weights(tmp_path / "a").items()}, {n: masks[n] for n in "35"})
    assert torch.equal(load_ticket(tmp_path / "a", into=small())(small_input()), model.eval()(small_input()))


# What is refused


WRONG: dict[str, tuple[str, Callable[[dict[str, Tensor]], dict[str, Any]]]] = {
    "name": ("no layer '7'", lambda masks: {**masks, "7": masks["0"]}),
    "norm": ("no layer '1'", lambda masks: {**masks, "1": torch.ones(6)}),
    "missing": ("'5' has no mask", lambda masks: {name: masks[name] for name in "03"}),
    "shape": ("'3' must have shape", lambda masks: {**masks, "3": masks["3"].flatten()}),
    "two": ("'5' must hold only", lambda masks: {**masks, "5": masks["5"] * 2}),
    "half": ("'5' must hold only", lambda masks: {**masks, "5": masks["5"] * 0.5}),
    "nan": ("'5' must hold only", lambda masks: {**masks, "5": torch.full((4, 45), torch.nan)}),
    "byte": ("'5' must hold only", lambda masks: {**masks, "5": masks["5"].to(torch.uint8) * 255}),
}


@pytest.mark.parametrize("wrong", list(WRONG))
@pytest.mark.parametrize("put", [start_scores, fix_masks])
def test_masks_that_do_not_fit_are_refused_and_change_nothing(put: Any, wrong: str) -> None:
    why, spoil = WRONG[wrong]
    model = binarize_weights(small(), "mpt-bihalf", 0.6, seed=0)
    before = state_of(model)
    with one_line_error(why):
        put(model, spoil(random_masks()))
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_take_a_mask_is_refused() -> None:
    for method in set(METHODS) - set(SCORE_METHODS):
        with one_line_error("no scores"):
            start_scores(binarize_weights(small(), method, seed=0), random_masks())
    model = small()
    nn.utils.parametrizations.weight_norm(model[5])
    with one_line_error("'5': its weight is computed"):
        fix_masks(model, random_masks())
    assert model[0].weight.all() and "parametrizations.0" not in " ".join(model.state_dict())
    model = binarize_weights(small(), "mpt-sign", seed=0)
    scores_of(model)["3"][0, 0] = torch.nan
    before = state_of(model)
    with one_line_error("'3' has NaN"):
        start_scores(model, random_masks())
    assert torch.equal(
        model.state_dict()["0.parametrizations.weight.0.scores"], before["0.parametrizations.weight.0.scores"]
    )


@pytest.mark.parametrize("given", ["a", "b", "both"])
def test_layers_that_share_a_weight_share_its_mask(given: str) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    mask = torch.rand(4, 4) < 0.5
    fix_masks(model, {name: mask for name in (("a", "b") if given == "both" else given)})
    assert torch.equal(model["a"].weight, model["b"].weight)
    assert torch.equal(model["a"].weight != 0, mask)
    baked = bake_weights(model)
    assert baked["a"].weight is baked["b"].weight and baked["a"].weight.requires_grad
    with one_line_error("'a' and 'b' share one weight, and their masks differ"):
        fix_masks(model, {"a": mask, "b": ~mask})
    assert torch.equal(model["a"].weight != 0, mask)


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        ([torch.ones(2, 3)], "must be a dictionary of tensors .* not list: ticket_weights"),
        ({"": None}, "must be a tensor, not NoneType"),
        ({"": torch.zeros(2, 3)}, "keeps nothing"),
    ],
)
def test_masks_that_are_none_are_refused_in_a_line(masks: Any, told: str) -> None:
    for model in (nn.Linear(3, 2), binarize_weights(nn.Linear(3, 2), "mpt-sign")):
        with one_line_error(told):
            fix_masks(model, masks)
    with one_line_error(told):
        start_scores(binarize_weights(nn.Linear(3, 2), "mpt-sign"), masks)

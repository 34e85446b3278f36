from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from decimal import Decimal
from math import sqrt
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models import VisionTransformer

from mpt_bihalf import (
    METHODS,
    Bop,
    bake_weights,
    binarize_weights,
    binary_layers,
    binary_weights,
    create_model,
    find_nan,
    global_score_masks,
    parameter_groups,
    set_prune_rate,
    shuffle_scores,
)
from mpt_bihalf.layer import Layer
from mpt_bihalf.parametrization import BinaryWeight
from tests.reference import (
    BIT_RATIO_METHODS,
    L1_FILTER,
    LEARNED,
    MASKED_METHODS,
    NEAREST,
    ROTATED,
    SCORE_METHODS,
    decide,
    half_up,
    kept_of,
    one_line_error,
    scale_of,
)

SCOPES = ["layer", "filter", "global"]
LATENT_METHODS = [name for name, method in METHODS.items() if method.trains != "signs"]
BINARY_METHODS = [name for name in METHODS if name != "dense"]


def scopes_of(method: str) -> list[str]:
    return SCOPES if method in ("mpt-sign", "mpt-bihalf") else ["layer"]


METHODS_AND_SCOPES = [(method, scope) for method in METHODS for scope in scopes_of(method)]
BINARY_METHODS_AND_SCOPES = [(method, scope) for method, scope in METHODS_AND_SCOPES if method != "dense"]


def small() -> nn.Sequential:
    """Two convolutions, a norm and two linear layers with biases, for images of 3x4x4."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 2),
        nn.Flatten(),
        nn.Linear(45, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


def small_input(device: torch.device | str = "cpu") -> Tensor:
    return torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(9)).to(device)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def latents(model: nn.Module) -> list[Tensor]:
    return [weight for _, _, weight in binary_layers(model)]


def binarized(model: nn.Module) -> list[Tensor]:
    """What is binarized in each layer: W, or what the method's module makes of it."""
    return [part.latent(weight).detach() for _, part, weight in binary_layers(model)]


def scores(model: nn.Module) -> list[Tensor]:
    return [part.scores for _, part, _ in binary_layers(model) if part.scores is not None]


def sgd(model: nn.Module, **choices: Any) -> torch.optim.SGD:
    """The optimizer that the model's method is trained with."""
    if any(part.method.trains == "signs" for _, part, _ in binary_layers(model)):
        return Bop(parameter_groups(model), lr=0.1, momentum=0.9, gamma=1e-2, tau=1e-4, **choices)
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9, **choices)


def step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    output = model(x)
    nn.functional.cross_entropy(output, torch.arange(len(x), device=x.device) % output.shape[1]).backward()
    optimizer.step()


def scale_in_use(layer: Any, method: str, weight: Tensor, mask: Tensor) -> float | Tensor:
    """The method's, which follows from W; or the one that the layer has learned."""
    learned = layer.parametrizations.weight[0].alpha
    return scale_of(method, weight, mask) if learned is None else learned.detach().abs().to(weight.dtype)


def assert_binarized_as_specified(
    model: nn.Module, method: str, rate: Any, p_pos: Any = 0.5, scope: str = "layer"
) -> None:
    """B of every layer is what plain lists say, and the weight in use is alpha times it."""
    expected = decide(method, binarized(model), scores(model), rate, p_pos, scope)
    found = binary_weights(model)
    assert len(found) == len(expected) > 0
    for (name, bits), weight, (mask, positive) in zip(found.items(), binarized(model), expected, strict=True):
        assert bits.shape == weight.shape and bits.dtype == weight.dtype and not bits.requires_grad
        assert torch.equal(bits, torch.where(positive, 1.0, -1.0).to(bits) * mask), name
        alpha = scale_in_use(model.get_submodule(name), method, weight, mask)
        tolerance = 4 * torch.finfo(weight.dtype).eps
        assert torch.allclose(model.get_submodule(name).weight, alpha * bits, rtol=tolerance, atol=0)


# What a binarized model computes


@pytest.mark.parametrize(("rate", "p_pos"), [(0, 0.5), (0.5, 0.35), (0.93, 0.7), ("1/3", "1/3")])
@pytest.mark.parametrize(("method", "scope"), BINARY_METHODS_AND_SCOPES)
def test_weight_in_use_is_alpha_times_the_binary_weight(
    method: str, scope: str, rate: Any, p_pos: Any, device: torch.device
) -> None:
    model = binarize_weights(small().to(device), method, rate, p_pos, scope, allow_empty=True)
    assert_binarized_as_specified(model, method, rate, p_pos, scope)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("method", "scope"), BINARY_METHODS_AND_SCOPES)
def test_any_float_dtype_is_binarized_alike(method: str, scope: str, dtype: torch.dtype) -> None:
    assert_binarized_as_specified(binarize_weights(small().to(dtype), method, scope=scope), method, 0.5, 0.5, scope)


def large_layer(dtype: torch.dtype) -> nn.Linear:
    """90,000 weights, and sums of them that float16 cannot hold."""
    layer = nn.Linear(300, 300, bias=False)
    with torch.no_grad():
        layer.weight.copy_(100 * torch.randn(300, 300, generator=torch.Generator().manual_seed(0)))
    return layer.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["binarized there", "converted"])
@pytest.mark.parametrize(("method", "scope"), BINARY_METHODS_AND_SCOPES)
def test_counts_and_sums_of_a_large_layer_do_not_overflow_in_half_precision(
    method: str, scope: str, way: str, dtype: torch.dtype
) -> None:
    layer = large_layer(torch.float32 if way == "converted" else dtype)
    model = binarize_weights(nn.Sequential(layer), method, 0.3, 0.5, scope, init="keep", seed=0).to(dtype)
    ((_, part, weight),) = binary_layers(model)
    assert weight.dtype == dtype
    binary = part.binary(weight)
    kept = binary != 0
    if method in MASKED_METHODS:
        per_filter = scope == "filter" or method in ("mpt-balanced", "magnitude-bihalf")
        assert kept.sum() == 63_000
        assert not per_filter or set(kept.sum(1).tolist()) == {210}
    if method in BIT_RATIO_METHODS:
        assert torch.equal((binary > 0).sum(1), (kept.sum(1) + 1) // 2)
    alpha = scale_in_use(model[0], method, weight.detach().double(), kept)
    used = torch.as_tensor(alpha) * binary.double()
    tolerance = 2 * torch.finfo(dtype).eps
    assert torch.allclose(model[0].weight.detach().double(), used, rtol=tolerance, atol=0)


class Rows(nn.Module):
    """A scale that an autocast would round: a sum by a matrix product."""

    def forward(self, layer: Layer, mask: Tensor | None) -> Tensor:
        rows = layer.weight.abs().flatten(1)
        return (rows @ rows.new_ones(rows.shape[1], 1)).sum() / rows.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("method", "scope"), BINARY_METHODS_AND_SCOPES)
def test_mixed_precision_changes_no_bit_of_masks_signs_and_scales(
    method: str, scope: str, dtype: torch.dtype, device: torch.device
) -> None:
    for scale in (None, *([Rows()] if method != "xnor" else [])):  # whose gradient goes with its own scale alone
        model = binarize_weights(small().to(device), method, 0.4, 0.5, scope, scale=scale, seed=0)
        plain = [(part.binary(weight), part(weight)) for _, part, weight in binary_layers(model)]
        with torch.autocast(device.type, dtype):
            mixed = [(part.binary(weight), part(weight)) for _, part, weight in binary_layers(model)]
            out = model(small_input().to(device))
        assert out.dtype == dtype  # so it was on
        for before, after in zip(plain, mixed, strict=True):
            for one, other in zip(before, after, strict=True):
                assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("method", BINARY_METHODS)
@pytest.mark.parametrize(
    "layer", [nn.Conv1d(4, 3, 5), nn.Conv3d(2, 3, 2), nn.Conv2d(6, 4, 3, groups=2), nn.Linear(9, 1)], ids=str
)
def test_every_kind_of_layer_is_binarized(method: str, layer: nn.Module) -> None:
    model = binarize_weights(nn.Sequential(deepcopy(layer)), method, 0.4, 0.3)
    assert_binarized_as_specified(model, method, 0.4, 0.3)


@pytest.mark.parametrize("method", BINARY_METHODS)
def test_channels_last_weights_give_the_same_and_stay_channels_last(method: str) -> None:
    plain, laid_out = (
        binarize_weights(model, method, seed=1)
        for model in (nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last))
    )
    assert torch.equal(plain.weight, laid_out.weight)
    assert laid_out.weight.is_contiguous(memory_format=torch.channels_last)


def test_dense_leaves_a_plain_model() -> None:
    model = binarize_weights(small(), "dense")
    assert [type(m) for m in model.modules()] == [type(m) for m in small().modules()]
    assert binary_weights(model) == {}


# Layers and filters that keep nothing


def test_a_layer_whose_filters_lose_all_weights_is_used_as_zeros_where_that_is_allowed() -> None:
    model = binarize_weights(nn.Linear(1, 4), "mpt-bihalf", 0.9, scope="filter", allow_empty=True)
    assert not model.weight.any()
    model(torch.ones(2, 1)).sum().backward()
    assert model.parametrizations.weight[0].scores.grad.isfinite().all()


def test_a_single_filter_may_keep_nothing() -> None:
    model = binarize_weights(nn.Linear(3, 40, bias=False), "mpt-bihalf", 0.9, seed=0)
    kept = (binary_weights(model)[""] != 0).sum(1)
    assert kept.min() == 0 and kept.sum() == 12


def depthwise() -> nn.Sequential:
    """Filters of 9, 4 and 36 weights."""
    return nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 9, 1), nn.Conv2d(36, 1, 1), nn.Linear(50, 2))


@pytest.mark.parametrize("way", ["binarize_weights", "set_prune_rate", "on meta"])
@pytest.mark.parametrize(
    ("method", "scope", "rate", "told"),
    [
        (
            "mpt-balanced",
            "layer",
            0.95,
            r"the 9 weights of each filter of layer '0' \(and of 1 more\).* 0\.8749,",
        ),
        ("magnitude-bihalf", "layer", 0.95, r"of each filter of layer '0' \(and of 1 more\): take at most 0\.8749,"),
        ("mpt-sign", "filter", "0.9", r"none of the 4 weights of each filter of layer '1': take at most 0\.8749,"),
        ("mpt-bihalf", "filter", 0.99, r"layer '0' \(and of 3 more\): take at most 0\.8749,"),
        ("mpt-sign", "layer", 0.987, r"none of the 36 weights of layer '0' \(and of 2 more\): take at most 0\.9861,"),
        ("magnitude-sign", "layer", 0.99, r"none of the 36 weights of layer '0' \(and of 2 more\)"),
    ],
)
def test_a_layer_that_would_keep_nothing_is_refused_with_the_highest_rate_that_fits(
    method: str, scope: str, rate: Any, told: str, way: str
) -> None:
    if way == "set_prune_rate":
        model = binarize_weights(depthwise(), method, 0.5, scope=scope)
        with one_line_error(told):
            set_prune_rate(model, rate)
        assert {part.prune_rate for _, part, _ in binary_layers(model)} == {0.5}
        return
    with torch.device("meta" if way == "on meta" else "cpu"):
        model = depthwise()
    before = [] if way == "on meta" else [p.clone() for p in model.parameters()]
    with one_line_error(told):
        binarize_weights(model, method, rate, scope=scope)
    assert not any(True for _ in binary_layers(model))
    assert all(map(torch.equal, before, model.parameters()))
    binarize_weights(model, method, rate, scope=scope, allow_empty=True)


@pytest.mark.parametrize(("method", "scope"), [(m, s) for m, s in BINARY_METHODS_AND_SCOPES if m in MASKED_METHODS])
def test_the_rate_that_an_error_names_is_the_highest(method: str, scope: str) -> None:
    for size in (1, 2, 5, 9, 25, 27, 1152):
        layer = nn.Linear(size, 1)
        try:
            binarize_weights(deepcopy(layer), method, 0.99999, scope=scope)
        except ValueError as fault:
            if scope == "global":
                continue
            highest = Decimal(re.search(r"at most (0\.\d+)", str(fault)).group(1))  # type: ignore[union-attr]
        else:
            raise AssertionError("nothing was kept")
        assert binary_weights(binarize_weights(deepcopy(layer), method, highest, scope=scope))[""].any()
        with pytest.raises(ValueError, match="keeps none"):
            binarize_weights(deepcopy(layer), method, highest + Decimal("0.0001"), scope=scope)


# Layers that share one weight


class Tied(nn.Module):
    """Two layers of one weight, a third, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.head = nn.Linear(6, 9)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(self.embed(x)).relu()).relu()).relu())


TOKENS = torch.arange(9)


def tied(method: str, scope: str = "layer", seed: int = 0) -> Tied:
    return binarize_weights(Tied(), method, 0.5, scope=scope, skip=["head"], seed=seed)


@pytest.mark.parametrize(("method", "scope"), BINARY_METHODS_AND_SCOPES)
def test_layers_of_one_weight_have_one_mask_and_train_it_together(method: str, scope: str) -> None:
    model = tied(method, scope)
    assert list(binary_weights(model)) == ["a", "c"]
    assert_binarized_as_specified(model, method, 0.5, 0.5, scope)
    optimizer = sgd(model)
    for _ in range(3):
        step(model, TOKENS, optimizer)
        assert torch.equal(model.a.weight, model.b.weight)
        assert_binarized_as_specified(model, method, 0.5, 0.5, scope)
    part = model.a.parametrizations.weight
    other = model.b.parametrizations.weight
    assert part[0].scores is other[0].scores and part.original is other.original
    trained = part.original if part[0].scores is None else part[0].scores
    assert sum(p is trained for group in optimizer.param_groups for p in group["params"]) == 1


@pytest.mark.parametrize("way", ["deepcopy", "state_dict", "to", "bake_weights"])
@pytest.mark.parametrize(("method", "scope"), BINARY_METHODS_AND_SCOPES)
def test_copies_keep_weights_shared(method: str, scope: str, way: str) -> None:
    model = tied(method, scope)
    step(model, TOKENS, sgd(model))
    if way == "state_dict":
        copy = tied(method, scope, seed=1)
        copy.load_state_dict(model.state_dict())
    else:
        copy = {
            "deepcopy": deepcopy,
            "to": lambda m: deepcopy(m).double().float(),
            "bake_weights": bake_weights,
        }[way](model)
    assert torch.equal(copy(TOKENS), model(TOKENS))
    assert copy.head.weight is copy.embed.weight
    if way == "bake_weights":
        assert copy.a.weight is copy.b.weight
        return
    step(copy, TOKENS, sgd(copy))
    assert torch.equal(copy.a.weight, copy.b.weight)
    assert copy.a.parametrizations.weight.original is copy.b.parametrizations.weight.original


def views_of_one_memory() -> nn.Module:
    model = Tied()
    model.c.weight = nn.Parameter(model.a.weight.data)
    return model


@pytest.mark.parametrize(
    ("model", "skip", "told"),
    [
        (Tied, [], "layer 'head' shares its weight with 'embed.weight'"),
        (Tied, ["head", "b"], "layer 'a' shares its weight with 'b.weight'"),
        (Tied, ["head", "a"], "layer 'b' shares its weight with 'a.weight'"),
        (views_of_one_memory, ["head"], "layer 'a' shares its weight with 'c.weight'"),
    ],
)
def test_a_weight_that_something_else_holds_too_is_refused_by_both_names(
    model: Callable[[], nn.Module], skip: list[str], told: str
) -> None:
    plain = model()
    before = tensors_of(plain)
    for method in METHODS:
        with one_line_error(f"{told}.*skip"):
            binarize_weights(plain, method, skip=skip)
    assert equal(tensors_of(plain), before) and all(p.requires_grad for p in plain.parameters())


# Real training


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(data.target)


@pytest.mark.parametrize(("rate", "p_pos"), [(0.5, 0.5), (0.9, 0.65), (0.13, 0.35)])
@pytest.mark.parametrize(("method", "scope"), [(m, s) for m, s in BINARY_METHODS_AND_SCOPES if m in BIT_RATIO_METHODS])
def test_bit_ratio_and_kept_count_are_exact_at_every_step_of_a_training(
    method: str, scope: str, rate: float, p_pos: float, digits: tuple[Tensor, Tensor], device: torch.device
) -> None:
    images, labels = (part.to(device) for part in digits)
    model = create_model("conv2", in_channels=1, image_size=8, seed=0, width=0.25).to(device)
    binarize_weights(model, method, rate, p_pos, scope, seed=0, latent_gradient="unscaled")
    optimizer = sgd(model)
    start = binary_weights(model)
    for i in range(15):
        batch = slice(32 * i, 32 * (i + 1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        used = [model.get_submodule(name).weight.detach().sign().flatten(1) for name, _, _ in binary_layers(model)]
        assert_bits_and_counts(used, method, scope, rate, p_pos)
    # Below an even split the ReLU layers can be dead from the start, and then nothing moves.
    assert p_pos < 0.5 or any(not torch.equal(start[name], after) for name, after in binary_weights(model).items())


def assert_bits_and_counts(used: list[Tensor], method: str, scope: str, rate: float, p_pos: float) -> None:
    for bits in used:
        n, plus = (bits != 0).sum(1).tolist(), (bits > 0).sum(1).tolist()
        assert plus == [half_up(p_pos, each) for each in n]
        if method == "bihalf":
            assert set(n) == {bits.shape[1]}
        elif method != "mpt-bihalf" or scope == "filter":
            assert set(n) == {kept_of(bits.shape[1], rate)}
        elif scope == "layer":
            assert sum(n) == kept_of(bits.numel(), rate)
    if scope == "global":
        assert sum(int((b != 0).sum()) for b in used) == kept_of(sum(b.numel() for b in used), rate)
        assert all(b.any() for b in used)


@pytest.mark.parametrize("method", list(METHODS))
def test_training_lowers_the_loss(method: str, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (part[:64] for part in digits)
    model = create_model("conv2", in_channels=1, image_size=8, seed=0, width=0.5)
    scale = "kaiming" if method == "irnet" else None  # its own is for networks with batch norm
    binarize_weights(model, method, seed=0, scale=scale, latent_gradient="scaled" if method == "bop" else "unscaled")
    optimizer, losses = sgd(model), []
    for group in optimizer.param_groups if method in LEARNED else ():
        # What is learned for a filter gets the gradients of all its weights.
        group["lr"] /= 30 if method in ROTATED else 5
    for _ in range(24 if method in ROTATED else 8):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.9 * losses[0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("method", "scope"), BINARY_METHODS_AND_SCOPES)
def test_binary_weights_follow_every_optimizer_step(method: str, scope: str, fused: bool) -> None:
    model = binarize_weights(small(), method, 0.5, 0.5, scope, seed=0)
    optimizer = sgd(model, fused=fused)
    for _ in range(3):
        step(model, small_input(), optimizer)
        assert_binarized_as_specified(model, method, 0.5, 0.5, scope)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("read", ["first", "last", "none"])
def test_global_masks_are_never_stale_whatever_is_read_between_backward_and_step(read: str, fused: bool) -> None:
    model = binarize_weights(small(), "mpt-bihalf", scope="global", seed=0)
    optimizer = sgd(model, fused=fused)
    layers = [model.get_submodule(name) for name, _, _ in binary_layers(model)]
    for _ in range(4):
        optimizer.zero_grad()
        model(small_input()).square().sum().backward()
        for layer in {"first": layers[:1], "last": layers[-1:], "none": []}[read]:
            assert layer.weight.any()
        optimizer.step()
        used = [layer.weight != 0 for layer in layers]
        assert all(torch.equal(u, m.bool()) for u, m in zip(used, global_score_masks(scores(model), 0.5), strict=True))


@pytest.mark.parametrize("way", ["moved after", "moved before", "made there"])
@pytest.mark.parametrize(("method", "scope"), METHODS_AND_SCOPES)
def test_a_training_step_never_waits_for_a_device(method: str, scope: str, way: str) -> None:
    # On meta there are no values: whatever asks the host for one raises.
    if way == "moved after":
        model = binarize_weights(small(), method, scope=scope)
        model(small_input())
        model.to("meta")
    elif way == "moved before":
        model = binarize_weights(small().to("meta"), method, scope=scope)
    else:
        with torch.device("meta"):
            model = binarize_weights(small(), method, scope=scope, seed=0)
    optimizer = sgd(model, fused=False)
    for _ in range(2):
        step(model, torch.empty(4, 3, 4, 4, device="meta"), optimizer)
    assert all(p.is_meta for p in model.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("method", "scope"), METHODS_AND_SCOPES)
def test_evaluation_in_inference_mode_does_not_get_in_the_way_of_training(method: str, scope: str) -> None:
    model = binarize_weights(small(), method, scope=scope)
    with torch.inference_mode():
        model(small_input())
    step(model, small_input(), sgd(model))


@pytest.mark.parametrize("method", BINARY_METHODS)
def test_a_layer_used_twice_in_one_pass_gets_both_gradients(method: str) -> None:
    layer = binarize_weights(nn.Linear(4, 4, bias=False), method, scope="global", seed=0)
    x = torch.randn(2, 4)
    (layer(layer(x)) + layer(x)).sum().backward()
    part = layer.parametrizations.weight
    trained = part.original if part[0].scores is None else part[0].scores
    assert trained.grad.isfinite().all() and trained.grad.any()


@pytest.mark.parametrize("layer", [nn.Linear(9, 4), nn.Conv2d(3, 6, 4), nn.Linear(1, 3), nn.Linear(501, 40)], ids=str)
def test_equal_bits_begin_with_the_same_signs_under_every_method_half_of_them_plus_one(layer: nn.Module) -> None:
    started = {
        m: binarize_weights(deepcopy(layer), m, init="equal_bits", seed=0) for m in ("sign", "irnet", "bihalf", "bop")
    }
    bits = [next(iter(binary_weights(model).values())) for model in started.values()]
    assert all(torch.equal(bits[0], other) for other in bits)
    size = bits[0][0].numel()
    assert (bits[0].flatten(1) > 0).sum(1).tolist() == [(size + 1) // 2] * len(bits[0])
    weight = latents(started["sign"])[0].flatten(1)
    if size > 400:
        assert weight.std().item() == pytest.approx(sqrt(2 / size), rel=0.02)
        assert not torch.equal(weight[0] > 0, weight[1] > 0)


def test_bop_keeps_the_signs_of_the_weights_that_are_there() -> None:
    layer = nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    binarize_weights(layer, "bop", init="keep")
    assert torch.equal(latents(layer)[0], torch.where(before >= 0, 1.0, -1.0))


# Controls: masks that are not learned, or not in their place


@pytest.mark.parametrize(("method", "scope"), [(m, s) for m, s in BINARY_METHODS_AND_SCOPES if m in SCORE_METHODS])
def test_a_mask_that_never_learns_has_the_same_count_and_stays(method: str, scope: str) -> None:
    model = nn.Sequential(small(), nn.BatchNorm1d(3))
    binarize_weights(model, method, 0.6, 0.5, scope, seed=0, learn_mask=False, train_affine=True)
    before = binary_weights(model)
    optimizer = sgd(model)
    for _ in range(3):
        step(model, small_input(), optimizer)
    after = binary_weights(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    learned = binary_weights(
        binarize_weights(nn.Sequential(small(), nn.BatchNorm1d(3)), method, 0.6, 0.5, scope, seed=0)
    )
    assert all(torch.equal(before[name], learned[name]) for name in before)  # where a learned mask begins


@pytest.mark.parametrize(("method", "scope"), [(m, s) for m, s in BINARY_METHODS_AND_SCOPES if m in SCORE_METHODS])
def test_shuffled_masks_keep_as_many_elsewhere(method: str, scope: str) -> None:
    def kept(model: nn.Module) -> list[Tensor]:
        return [bits != 0 for bits in binary_weights(model).values()]

    def counts(masks: list[Tensor]) -> list[list[int]]:
        within_filters = method == "mpt-balanced" or scope == "filter"
        return [m.flatten(1).sum(1).tolist() if within_filters else [int(m.sum())] for m in masks]

    model = binarize_weights(small(), method, 0.6, 0.5, scope, seed=0)
    before = kept(model)
    shuffle_scores(model, seed=1)
    after = kept(model)
    assert counts(before) == counts(after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.numel() > 60)
    assert_binarized_as_specified(model, method, 0.6, 0.5, scope)
    again = binarize_weights(small(), method, 0.6, 0.5, scope, seed=0)
    shuffle_scores(again, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(after, kept(again), strict=True))


def test_a_shuffled_mask_falls_evenly_on_what_was_kept_and_what_was_not() -> None:
    model = binarize_weights(nn.Linear(300, 200, bias=False), "mpt-sign", 0.5, seed=0)
    before = binary_weights(model)[""] != 0
    shuffle_scores(model, seed=0)
    after = binary_weights(model)[""] != 0
    assert (before & after).sum().item() / before.sum().item() == pytest.approx(0.5, abs=0.01)


# Any torchvision classifier


def vision_transformer() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision_models.resnet18(num_classes=10),
    "mobilenet_v3_small": lambda: torchvision_models.mobilenet_v3_small(num_classes=10),
    "squeezenet1_1": lambda: torchvision_models.squeezenet1_1(num_classes=10),
    "shufflenet_v2_x0_5": lambda: torchvision_models.shufflenet_v2_x0_5(num_classes=10),
    "densenet": lambda: torchvision_models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10),
    "vision_transformer": vision_transformer,
}
NETWORK_METHODS = [("mpt-bihalf", "global"), ("mpt-balanced", "layer"), ("bihalf", "layer")]
# Each network under one method, each method in two networks; the others by hand.
NETWORKS_AND_METHODS = [
    pytest.param(name, *choice, marks=() if i % 3 == j else pytest.mark.slow)
    for i, name in enumerate(NETWORKS)
    for j, choice in enumerate(NETWORK_METHODS)
    if name != "resnet18" or j == 0
]


def image_batch() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("name", "method", "scope"), NETWORKS_AND_METHODS)
class TestAnyClassifier:
    def test_trains_what_is_trained_and_leaves_what_is_frozen(self, name: str, method: str, scope: str) -> None:
        torch.manual_seed(0)
        model = binarize_weights(NETWORKS[name](), method, scope=scope, seed=0)
        before, buffers = tensors_of(model), {n for n, _ in model.named_buffers()}
        step(model, image_batch(), sgd(model, fused=True))
        after = model.state_dict()
        for parameter_name, parameter in model.named_parameters():
            same = torch.equal(before[parameter_name], after[parameter_name])
            moves = parameter.requires_grad and parameter.grad is not None and bool(parameter.grad.any())
            assert same is not moves, parameter_name
            if ".parametrizations.weight." in parameter_name:
                of_scores = parameter_name.endswith(".scores")
                assert parameter.requires_grad is (of_scores or method == "bihalf")
        assert any(not torch.equal(before[n], after[n]) for n in before.keys() - buffers)

    def test_is_deepcopied_into_an_independent_model(self, name: str, method: str, scope: str) -> None:
        model = binarize_weights(NETWORKS[name](), method, scope=scope, seed=0).eval()
        with torch.no_grad():
            expected = model(image_batch())
        twin = deepcopy(model)
        before = tensors_of(model)
        for _ in range(2):
            step(twin.train(), image_batch(), sgd(twin))
        assert equal(tensors_of(model), before) and not equal(tensors_of(twin), before)
        with torch.no_grad():
            assert torch.equal(model(image_batch()), expected)
            assert not torch.equal(twin.eval()(image_batch()), expected)
        if scope == "global":
            used = [twin.get_submodule(name).weight != 0 for name, _, _ in binary_layers(twin)]
            masks = global_score_masks(scores(twin), 0.5)
            assert all(torch.equal(u, m.bool()) for u, m in zip(used, masks, strict=True))

    def test_state_dict_restores_it_into_one_of_another_seed(self, name: str, method: str, scope: str) -> None:
        model, other = (binarize_weights(NETWORKS[name](), method, scope=scope, seed=seed).eval() for seed in (0, 1))
        with torch.no_grad():
            expected = model(image_batch())
            assert not torch.equal(other(image_batch()), expected)
            file = io.BytesIO()
            torch.save(model.state_dict(), file)
            file.seek(0)
            other.load_state_dict(torch.load(file, weights_only=True))
            assert torch.equal(other(image_batch()), expected)

    def test_bakes_to_a_plain_model_of_the_same_outputs(self, name: str, method: str, scope: str) -> None:
        plain = NETWORKS[name]()
        original = binarize_weights(deepcopy(plain), method, scope=scope, seed=0)
        step(original, image_batch(), sgd(original))
        for model in (original, deepcopy(original)):
            model.eval()
            before = tensors_of(model)
            baked = bake_weights(model)
            assert equal(tensors_of(model), before)
            with torch.no_grad():
                expected = model(image_batch())
                for copy in (baked, *reloaded(baked)):
                    assert torch.equal(copy(image_batch()), expected)
            assert_plain(baked, plain)
            step(model.train(), image_batch(), sgd(model))
            assert not equal(tensors_of(model), before)
            assert_plain(bake_weights(model), plain)


def reloaded(model: nn.Module) -> Iterator[nn.Module]:
    yield pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


def assert_plain(baked: nn.Module, plain: nn.Module) -> None:
    """Classes, keys, parameters, attributes and hooks are those of a model that never was binarized."""
    assert [type(m) for m in baked.modules()] == [type(m) for m in plain.modules()]
    assert baked.state_dict().keys() == plain.state_dict().keys()
    assert {n for n, _ in baked.named_parameters()} == {n for n, _ in plain.named_parameters()}
    for module, twin in zip(baked.modules(), plain.modules(), strict=True):
        assert vars(module).keys() == vars(twin).keys()
        hooks = [v for k, v in vars(module).items() if "hooks" in k]
        assert not any(hooks)
    assert b"mpt_bihalf" not in pickle.dumps(baked)


@pytest.mark.parametrize(("method", "scope"), METHODS_AND_SCOPES)
def test_each_method_bakes_to_a_plain_model_of_the_same_outputs(method: str, scope: str) -> None:
    model = binarize_weights(small(), method, 0.4, 0.35, scope).eval()
    baked = bake_weights(model)
    assert torch.equal(baked(small_input()), model(small_input()))
    assert_plain(baked, small())
    first = baked[0].weight
    by_filter = method in ("irnet", *L1_FILTER, *NEAREST, *LEARNED)
    values = first.flatten(1) if by_filter else first.unsqueeze(0)  # one scale a filter, or one a layer
    assert all(len(row.unique()) <= (3 if method != "dense" else first.numel()) for row in values)


def test_baking_twice_and_binarizing_what_is_baked_work() -> None:
    model = binarize_weights(small(), "mpt-bihalf", seed=0)
    first, second = bake_weights(model), bake_weights(model)
    assert equal(tensors_of(first), tensors_of(second))
    again = binarize_weights(first, "sign", init="keep")
    assert_binarized_as_specified(again, "sign", 0)
    assert_binarized_as_specified(model, "mpt-bihalf", 0.5)


def test_a_plain_model_bakes_to_a_copy_of_itself() -> None:
    model = small()
    baked = bake_weights(model)
    assert baked is not model and equal(tensors_of(baked), tensors_of(model))


@pytest.mark.parametrize(("method", "scope"), METHODS_AND_SCOPES)
def test_each_method_survives_a_state_dict_and_a_deepcopy(method: str, scope: str) -> None:
    model, other = (binarize_weights(small(), method, scope=scope, seed=seed).eval() for seed in (0, 1))
    other(small_input())
    other.load_state_dict(model.state_dict())
    expected = model(small_input())
    assert torch.equal(other(small_input()), expected)
    twin = deepcopy(model)
    step(twin.train(), small_input(), sgd(twin))
    assert torch.equal(model(small_input()), expected)
    if method != "dense":
        assert_binarized_as_specified(twin, method, 0.5, 0.5, scope)


# Frozen weights that someone changes


def load_other(model: nn.Module, method: str, scope: str) -> None:
    model.load_state_dict(binarize_weights(small(), method, scope=scope, seed=1).state_dict())


def assign_other(model: nn.Module, method: str, scope: str) -> None:
    model.load_state_dict(binarize_weights(small(), method, scope=scope, seed=1).state_dict(), assign=True)


def to_double(model: nn.Module, method: str, scope: str) -> None:
    model.double()


def negate(model: nn.Module, method: str, scope: str) -> None:
    with torch.no_grad():
        for weight in latents(model):
            weight.neg_()


def set_weight(model: nn.Module, method: str, scope: str) -> None:
    for name, _, weight in list(binary_layers(model)):
        model.get_submodule(name).weight = -weight.detach()


def replace_data(model: nn.Module, method: str, scope: str) -> None:
    for weight in latents(model):
        weight.data = weight.data.flip(0)


@pytest.mark.parametrize("change", [load_other, assign_other, to_double, negate, set_weight, replace_data])
@pytest.mark.parametrize(("method", "scope"), BINARY_METHODS_AND_SCOPES)
def test_signs_follow_a_change_of_the_latent_weights(method: str, scope: str, change: Callable[..., None]) -> None:
    model = binarize_weights(small(), method, scope=scope, seed=0)
    model(small_input())
    change(model, method, scope)
    assert_binarized_as_specified(model, method, 0.5, 0.5, scope)


# Initialisation


@pytest.mark.parametrize("rate", [0, 0.5, 0.9])
@pytest.mark.parametrize("method", LATENT_METHODS)
def test_latent_weights_are_kaiming_normal_over_the_kept_fan_in(method: str, rate: float) -> None:
    layer = nn.Linear(500, 400)
    binarize_weights(layer, method, rate, seed=0)
    weight = layer.weight if method == "dense" else layer.parametrizations.weight.original
    kept = 1 - rate if method in MASKED_METHODS else 1
    std = sqrt(2 / (kept * 500))
    n = weight.numel()
    assert weight.std().item() == pytest.approx(std, rel=5 / sqrt(2 * n))
    assert weight.mean().item() == pytest.approx(0, abs=5 * std / sqrt(n))
    assert weight.div(std).pow(4).mean().item() == pytest.approx(3, abs=5 * sqrt(96 / n))


@pytest.mark.parametrize("rate", [0, 0.5, 0.9])
@pytest.mark.parametrize("method", SCORE_METHODS)
def test_scores_are_uniform_within_one_over_the_root_of_the_fan_in(method: str, rate: float) -> None:
    layer = binarize_weights(nn.Conv2d(16, 64, 5), method, rate, seed=0)
    drawn = layer.parametrizations.weight[0].scores
    bound = 1 / sqrt(400)
    assert drawn.abs().max() <= bound and drawn.abs().max() > 0.999 * bound
    assert drawn.var().item() == pytest.approx(bound**2 / 3, rel=0.05)
    assert drawn.mean().item() == pytest.approx(0, abs=5 * bound / sqrt(3 * drawn.numel()))


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_signed_constant_has_two_values_and_the_signs_of_the_normal_draw(method: str) -> None:
    normal, constant = (
        binarize_weights(nn.Linear(32, 20), method, 0.5, init=init, seed=0)
        for init in ("kaiming_normal", "signed_constant")
    )
    draw, weight = (m.weight if method == "dense" else latents(m)[0] for m in (normal, constant))
    std = sqrt(2 / ((0.5 if method in MASKED_METHODS else 1) * 32))
    assert sorted(weight.unique().tolist()) == pytest.approx([-std, std])
    assert torch.equal(weight > 0, draw >= 0)


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_keep_keeps_the_weights_that_are_there(method: str) -> None:
    model = small()
    before = [m.weight.detach().clone() for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    binarize_weights(model, method, init="keep")
    kept = latents(model) if method != "dense" else [m.weight for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))


def test_a_seed_gives_every_method_the_same_draws(device: torch.device) -> None:
    made = {m: binarize_weights(small().to(device), m, 0.5, seed=3) for m in reversed(list(METHODS)) if m != "dense"}
    for family in (MASKED_METHODS, ("sign", "bihalf")):
        first, *others = (latents(made[m]) for m in family)
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    first, *others = (scores(made[m]) for m in SCORE_METHODS)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    on_cpu = binarize_weights(small(), "mpt-bihalf", 0.5, seed=3)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(latents(made["mpt-bihalf"]), latents(on_cpu), strict=True))


def test_a_seed_leaves_the_global_generator_as_it_was_and_none_draws_from_it() -> None:
    before = torch.get_rng_state()
    model = small()
    after = torch.get_rng_state()
    assert not torch.equal(before, after)
    binarize_weights(model, seed=3)
    assert torch.equal(torch.get_rng_state(), after)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(latents(binarize_weights(nn.Linear(5, 4)))[0])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# What is binarized, what is frozen, what is refused


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), ["0", "3", "5", "7"]),
        ("first", ["3", "5", "7"]),
        (["last"], ["0", "3", "5"]),
        (("first", "last"), ["3", "5"]),
        (("5", "first", "downsample"), ["3", "7"]),
        (["0", "first"], ["3", "5", "7"]),
    ],
)
def test_skip_takes_names_and_rules(skip: Any, left: list[str]) -> None:
    assert list(binary_weights(binarize_weights(small(), skip=skip))) == left


def test_downsample_skips_the_shortcut_convolutions_of_a_residual_network() -> None:
    with torch.device("meta"):
        model = torchvision_models.resnet18()
        binarize_weights(model, skip=("first", "last", "downsample"))
    names = list(binary_weights(model))
    assert len(names) == 16 and all(name.split(".")[-1] in ("conv1", "conv2") and "layer" in name for name in names)


@pytest.mark.parametrize("method", SCORE_METHODS)
def test_frozen_weight_methods_train_scores_and_skipped_layers_only(method: str) -> None:
    model = binarize_weights(small(), method, skip="last")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{i}.parametrizations.weight.0.scores" for i in (0, 3, 5)} | {"7.weight", "7.bias"}


@pytest.mark.parametrize("method", SCORE_METHODS)
def test_train_affine_trains_biases_and_norms_too(method: str) -> None:
    model = binarize_weights(small(), method, skip="last", train_affine=True)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"{i}.parametrizations.weight.original" for i in (0, 3, 5)}


@pytest.mark.parametrize("method", [name for name in METHODS if name not in SCORE_METHODS])
def test_methods_that_train_weights_train_everything(method: str) -> None:
    assert all(p.requires_grad for p in binarize_weights(small(), method).parameters())


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, affine=True)]
    + [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)],
    ids=lambda norm: type(norm).__name__,
)
def test_every_kind_of_norm_is_frozen_by_default(norm: nn.Module) -> None:
    model = binarize_weights(nn.Sequential(nn.Linear(4, 4), deepcopy(norm)), "mpt-bihalf")
    assert not any(p.requires_grad for p in model[1].parameters())


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))


def with_nan() -> nn.Module:
    model = small()
    with torch.no_grad():
        model[5].weight[1, 2] = float("nan")
    return model


@pytest.mark.parametrize(
    ("make", "choices", "says"),
    [
        (small, {"method": "mpt"}, "unknown method 'mpt'.*mpt-bihalf"),
        (small, {"method": None}, "unknown method None"),
        (small, {"scope": "model"}, "unknown scope 'model'.*layer, filter, global"),
        (small, {"scope": None}, "unknown scope None"),
        (small, {"init": "xavier"}, "unknown init 'xavier'.*kaiming_normal"),
        (small, {"prune_rate": 1}, "prune_rate.*1"),
        (small, {"prune_rate": -0.1}, "prune_rate.*-0.1"),
        (small, {"prune_rate": float("nan")}, "prune_rate.*nan"),
        (small, {"prune_rate": "half"}, "prune_rate.*half"),
        (small, {"p_pos": 1.5}, "p_pos.*1.5"),
        (small, {"p_pos": None}, "p_pos.*None"),
        (small, {"scale": "l2"}, "unknown scale 'l2'.*kaiming"),
        (small, {"latent_gradient": "clip"}, "unknown latent_gradient 'clip'.*scaled"),
        (small, {"score_gradient": "clipped"}, "unknown score_gradient 'clipped'.*latent"),
        (small, {"skip": ("first", "fc")}, "'fc'.*first, last, downsample.*0, 3, 5, 7"),
        (small, {"skip": "2"}, "'2'"),
        (small, {"skip": ("0", "3", "5", "7")}, "left"),
        (nn.ReLU, {}, "no convolution or linear layer"),
        (small, {"scope": "global", "prune_rate": 0.999}, "keeps 1 of .* fewer than the 4"),
        (with_nan, {"init": "keep"}, "NaN"),
        (lazy, {}, "'0'"),
    ],
)
def test_what_is_refused_is_said_in_one_line_and_changes_nothing(
    make: Callable[[], nn.Module], choices: dict[str, Any], says: str
) -> None:
    model = make()
    before, flags = deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    kinds = [type(m) for m in model.modules()]
    with one_line_error(says):
        binarize_weights(model, **choices)
    assert [type(m) for m in model.modules()] == kinds
    assert [p.requires_grad for p in model.parameters()] == flags
    for name, tensor in model.state_dict().items():
        assert nn.parameter.is_lazy(tensor) or torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7))


def test_binarizing_twice_is_refused_and_the_first_stays() -> None:
    model = binarize_weights(small(), "mpt-sign", seed=0)
    before = tensors_of(model)
    with one_line_error("layer '0' is binarized already"):
        binarize_weights(model, "bihalf")
    assert equal(tensors_of(model), before)
    assert_binarized_as_specified(model, "mpt-sign", 0.5)


def test_a_nan_among_the_weights_to_keep_is_refused_by_the_name_of_its_layer() -> None:
    with one_line_error("'5'"):
        binarize_weights(with_nan(), init="keep")


def test_layers_left_by_an_earlier_call_can_get_another_method() -> None:
    model = binarize_weights(small(), "mpt-bihalf", skip=("first", "last"))
    binarize_weights(model, "bihalf", skip=("3", "5"))
    assert [part.method.name for _, part, _ in binary_layers(model)] == ["bihalf", "mpt-bihalf", "mpt-bihalf", "bihalf"]


# NaN


@pytest.mark.parametrize("method", BINARY_METHODS)
def test_a_nan_is_found_by_the_name_of_its_layer(method: str) -> None:
    model = binarize_weights(small(), method)
    assert find_nan(model) is None
    for part in [latents(model)[2], *scores(model)[2:3]]:
        with torch.no_grad():
            part[1, 3] = float("nan")
        assert find_nan(model) == "5"
        with one_line_error("'5'"):
            bake_weights(model)
        with torch.no_grad():
            part[1, 3] = 0.0


def test_the_first_layer_with_a_nan_is_named() -> None:
    model = binarize_weights(small(), "mpt-bihalf")
    with torch.no_grad():
        scores(model)[1][0] = float("nan")
        latents(model)[3][0] = float("nan")
    assert find_nan(model) == "3"


def test_a_model_without_binarized_layers_or_values_has_no_nan() -> None:
    assert find_nan(with_nan()) is None
    assert find_nan(binarize_weights(small(), "sign").to("meta")) is None


@pytest.mark.parametrize("method", [m for m in BINARY_METHODS if m not in ("sign",)])
def test_reading_binary_weights_with_a_nan_is_no_silent_wrong_ratio(method: str) -> None:
    model = binarize_weights(small(), method)
    with torch.no_grad():
        for part in (latents(model)[2], *scores(model)[2:3]):
            part[1, 3] = float("nan")
    with one_line_error("'5'"):
        binary_weights(model)


def test_the_parts_of_a_binarized_model_can_be_read() -> None:
    model = binarize_weights(small(), "mpt-bihalf", 0.3, 0.35, "filter")
    names, parts, weights = zip(*binary_layers(model), strict=True)
    assert names == ("0", "3", "5", "7")
    assert all(isinstance(part, BinaryWeight) for part in parts)
    assert all(part.scores.shape == weight.shape for part, weight in zip(parts, weights, strict=True))
    assert "mpt-bihalf, prune_rate=0.3, p_pos=0.35, scope=filter" in str(model)


@pytest.mark.parametrize("method", ["sign", "bihalf", "irnet", "magnitude-bihalf"])
def test_binary_weights_of_many_latent_ones_by_vmap(method: str) -> None:
    layer = binarize_weights(torch.nn.Linear(50, 8), method, 0.5, seed=0)
    part, weights = layer.parametrizations.weight[0], torch.randn(3, 8, 50)
    assert torch.equal(torch.vmap(part.binary)(weights), torch.stack([part.binary(weight) for weight in weights]))


def test_assigning_a_weight_of_another_shape_is_refused() -> None:
    layer = binarize_weights(nn.Linear(6, 2), "bihalf", seed=0)
    before = layer.weight.clone()
    with one_line_error(r"weight is \[2, 6\], and what is assigned is \[3, 3\]"):
        layer.weight = torch.zeros(3, 3)
    assert torch.equal(layer.weight, before)

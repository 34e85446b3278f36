"""Masks that are fixed before training: SNIP, GraSP, SynFlow, by magnitude and at random."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mpt_bihalf import (
    MASKS,
    EmptyLayers,
    InitialMask,
    bake_weights,
    binarize_weights,
    binary_weights,
    create_model,
    fix_masks,
    initial_masks,
    load_ticket,
    save_ticket,
)
from mpt_bihalf.counts import kept_count
from mpt_bihalf.initial_scores import Untrained, grasp, snip, synflow
from mpt_bihalf.parametrization import binary_layers
from tests.reference import one_line_error

RULES = ["random", "magnitude", "snip", "grasp", "synflow"]


def batches(count: int = 30, size: int = 8, channels: int = 1, parts: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, size, size, generator=generator)
    y = torch.randint(10, (count,), generator=generator)
    return [*zip(x.chunk(parts), y.chunk(parts), strict=True)]


def small_net(method: str = "dense", **options: Any) -> nn.Module:
    model = create_model("conv2", 10, 1, 8, seed=0, width=0.1)
    return binarize_weights(model, method, seed=0, **options)


def untrained(model: nn.Module, data: Iterable[tuple[Tensor, Tensor]]) -> Untrained:
    """A plain network all of whose convolution and linear layers are scored."""
    weights = {
        name: module.weight.requires_grad_()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    return Untrained(model, weights, {name: w.detach().clone() for name, w in weights.items()}, data, kept)


def mlp(*sizes: int, seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for d, f in pairwise(sizes):
        layers += [nn.Linear(d, f, bias=False), nn.ReLU()]
        with torch.no_grad():
            layers[-2].weight.copy_(torch.randn(f, d, generator=generator) * (2 / d) ** 0.5)
    return nn.Sequential(*layers[:-1])


# The scores


def test_snip_is_the_gradient_of_a_mask_at_1() -> None:
    data = [(x.double(), y) for x, y in batches(parts=1)]
    model = bake_weights(small_net("sign")).double().train()
    network = untrained(model, data)
    found = snip(network)
    m = {name: torch.ones_like(w, requires_grad=True) for name, w in network.weights.items()}
    (x, y), weights = data[0], {f"{name}.weight": w.detach() * m[name] for name, w in network.weights.items()}
    gradients = torch.autograd.grad(F.cross_entropy(functional_call(model, weights, x), y, reduction="sum"), m.values())
    for (name, score), gradient in zip(found.items(), gradients, strict=True):
        torch.testing.assert_close(score, gradient.abs(), rtol=1e-10, atol=1e-14)
        assert score.shape == network.weights[name].shape


@pytest.mark.parametrize("rule", [snip, grasp])
def test_scores_are_the_same_in_one_batch_and_in_several(rule: Any) -> None:
    model = bake_weights(small_net("sign")).double()
    one, several = (
        rule(untrained(deepcopy(model), [(x.double(), y) for x, y in batches(parts=parts)])) for parts in (1, 4)
    )
    for name, score in one.items():
        torch.testing.assert_close(several[name], score, rtol=1e-9, atol=1e-15)


def test_grasp_of_a_quadratic_loss() -> None:
    class Quadratic(Untrained):
        def losses(self, temperature: float = 1.0) -> Iterable[Tensor]:
            (w,) = self.weights.values()
            yield (torch.tensor([1.0, 2.0, 3.0]) * w.flatten() ** 2).sum() / 2

    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0, 0.5]]))
    network = Quadratic(model, {"0": model[0].weight}, {"0": model[0].weight.detach()}, [], {})
    assert grasp(network)["0"].tolist() == [[1, 4, 2.25]]
    rule = InitialMask(lambda scored: grasp(Quadratic(scored.model, scored.weights, scored.drawn, [], {})))
    kept = [initial_masks(model, rule, rate)["0"][0].tolist() for rate in ("1/3", "2/3")]
    assert kept == [[False, True, True], [False, True, False]]


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient() -> None:
    model = mlp(4, 5, 3).double()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 4, generator=generator, dtype=torch.float64), torch.randint(3, (12,), generator=generator)
    network = untrained(model, [(x[:5], y[:5]), (x[5:], y[5:])])
    sizes = [w.numel() for w in network.weights.values()]
    flat = torch.cat([w.detach().flatten() for w in network.weights.values()])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        weights = {
            f"{name}.weight": part.view_as(w) for (name, w), part in zip(network.weights.items(), parts, strict=True)
        }
        return F.cross_entropy(functional_call(model, weights, x) / 200, y, reduction="sum")

    gradient = torch.func.grad(loss)(flat)
    hessian = torch.autograd.functional.hessian(loss, flat)
    found = torch.cat([score.flatten() for score in grasp(network).values()])
    torch.testing.assert_close(found, flat * (hessian @ gradient), rtol=1e-8, atol=1e-16)


def test_the_sums_of_synflow_are_equal_and_the_sum_of_the_outputs() -> None:
    for model, x in (
        (mlp(6, 8, 5, 3), torch.randn(2, 6)),
        (bake_weights(small_net("dense")), torch.randn(2, 1, 8, 8)),
    ):
        network = untrained(model, [(x, torch.zeros(2, dtype=torch.int64))])
        for round_ in range(2):
            scores = synflow(network)
            positive = deepcopy(model).double()
            with torch.no_grad():
                for name, module in positive.named_modules():
                    if name in network.kept:
                        module.weight.abs_().mul_(network.kept[name])
                R = positive(torch.ones_like(x[:1], dtype=torch.float64)).sum()
            for score in scores.values():
                assert score.dtype == torch.float64 and (score >= 0).all()
                torch.testing.assert_close(score.sum(), R, rtol=1e-12, atol=0)
            # Next under a mask.
            network.kept = {name: score >= score.flatten().median() for name, score in scores.items()}
            assert round_ or any(not mask.all() for mask in network.kept.values())


def ties(network: Untrained) -> list[Tensor]:
    """The scores of SynFlow where nothing refuses weights of one size."""
    a = {name: w.detach().double().abs().requires_grad_() for name, w in network.weights.items()}
    R = functional_call(network.linear, {f"{n}.weight": w for n, w in a.items()}, torch.ones(1, 6).double()).sum()
    return [w.detach() * g for w, g in zip(a.values(), torch.autograd.grad(R, [*a.values()]), strict=True)]


def test_synflow_scores_drawn_weights_as_binary_ones_tie() -> None:
    model = binarize_weights(mlp(6, 8, 5, 3), "sign", init="keep")
    x = [(torch.zeros(1, 6), torch.zeros(1, dtype=torch.int64))]
    network = untrained(bake_weights(model), x)  # drawn: alpha B itself
    assert all(score.unique().numel() == 1 for score in (s.round(decimals=9) for s in map(torch.log, ties(network))))
    masks = initial_masks(model, "synflow", 0.5, x)
    assert sum(int(mask.sum()) for mask in masks.values()) == 103 - 52
    assert all(0 < mask.sum() < mask.numel() for mask in masks.values())
    with one_line_error("synflow ranks weights by their size, and in each layer all have one: draw them otherwise"):
        initial_masks(binarize_weights(mlp(6, 8, 5, 3), "sign", init="signed_constant", seed=0), "synflow", 0.5, x)


@pytest.mark.parametrize(
    ("name", "skip"),
    [
        ("conv2", ()),
        ("conv4", ()),
        ("conv6", ()),
        ("conv8", ()),
        ("vgg_small", ()),
        ("resnet18", ("first", "last", "downsample")),
    ],
)
@pytest.mark.parametrize("method", ["dense", "mpt-bihalf"])
def test_synflow_empties_no_layer_at_99_percent(name: str, skip: tuple[str, ...], method: str) -> None:
    model = create_model(name, 10, 3, 32, seed=0, width=0.125)
    binarize_weights(model, method, seed=0, skip=skip, example=torch.zeros(1, 3, 32, 32))
    layers = [each for each, _, _ in binary_layers(model)] or None
    masks = initial_masks(model, "synflow", 0.99, batches(2, 32, 3), layers=layers)
    sizes = [mask.numel() for mask in masks.values()]
    assert all(mask.any() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(sum(sizes), 0.99)


# Counts, ties and what they are ranked within


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scope", ["global", "layer", "filter"])
@pytest.mark.parametrize("rate", [0.9, 0.35, "1/3", 0])
@pytest.mark.parametrize("method", ["dense", "bihalf", "mpt-sign"])
def test_counts_are_exact(rule: str, scope: str, rate: Any, method: str) -> None:
    model = small_net(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyLayers)
        masks = initial_masks(model, rule, rate, batches(), scope)
    assert all(mask.dtype == torch.bool for mask in masks.values())
    if scope == "global":
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, rate)
    for mask in masks.values():
        rows = mask.flatten(1) if scope == "filter" else mask.reshape(1, -1)
        if scope != "global":
            assert (rows.sum(1) == kept_count(rows.shape[1], rate)).all()


def test_of_equal_scores_those_of_the_later_layer_and_the_higher_index_stay() -> None:
    equal = InitialMask(lambda network: {name: torch.ones_like(w) for name, w in network.weights.items()})
    model = mlp(2, 3, 4)
    with pytest.warns(EmptyLayers, match="the mask keeps nothing of layer '0'"):
        masks = initial_masks(model, equal, 0.5)
    assert not masks["0"].any() and masks["2"].flatten().tolist() == [False] * 3 + [True] * 9
    by_layer = initial_masks(model, equal, 0.5, scope="layer")
    assert by_layer["0"].flatten().tolist() == [False] * 3 + [True] * 3
    by_filter = initial_masks(model, equal, 0.5, scope="filter")
    assert by_filter["0"].tolist() == [[False, True]] * 3


@pytest.mark.parametrize("rule", ["snip", "magnitude"])
def test_the_kept_are_the_best_scored(rule: str) -> None:
    model = small_net("sign")
    masks = initial_masks(model, rule, 0.8, batches())
    plain = bake_weights(model)
    network = untrained(plain, batches())
    scores = snip(network) if rule == "snip" else {n: w.detach().abs() for n, _, w in binary_layers(model)}
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    order = flat.argsort(stable=True)
    assert torch.equal(kept.nonzero().flatten(), order[len(order) - int(kept.sum()) :].sort().values)


def test_rounds_never_bring_a_weight_back() -> None:
    seen: list[dict[str, Tensor]] = []

    def scores(network: Untrained) -> dict[str, Tensor]:
        seen.append(dict(network.kept))
        sign = (-1.0) ** len(seen)  # what was worst, and is pruned, has the best score in the next round
        return {name: sign * torch.arange(w.numel()).view(w.shape) for name, w in network.weights.items()}

    masks = initial_masks(mlp(5, 6, 7), InitialMask(scores, rounds=7), 0.9, scope="layer")
    assert len(seen) == 7
    for before, after in zip(seen, [*seen[1:], masks], strict=True):
        assert all((after[name] <= before[name]).all() for name in before)
        assert [int(mask.sum()) for mask in after.values()] < [int(mask.sum()) for mask in before.values()]


# What stays as it is


@pytest.mark.parametrize("method", ["dense", "bihalf", "mpt-bihalf", "rbnn"])
@pytest.mark.parametrize("rule", RULES)
def test_the_model_stays_as_it_is_and_masks_it_has_do_not_count(method: str, rule: str) -> None:
    model = small_net(method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    masks = initial_masks(model, rule, 0.5, batches())
    assert torch.equal(torch.get_rng_state(), chance) and model.training
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    fix_masks(model, {name: torch.rand_like(mask.float()) > 0.3 for name, mask in masks.items()})
    again = initial_masks(model, rule, 0.5, batches())
    assert all(torch.equal(again[name], masks[name]) for name in masks)


def test_seeds() -> None:
    model = mlp(20, 30)
    first, same, other = (initial_masks(model, "random", 0.5, seed=seed)["0"] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_layers_that_share_a_weight_and_layers_that_are_named() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    masks = initial_masks(model, "snip", 0.5, [(torch.randn(8, 6), torch.randint(3, (8,)))])
    assert list(masks) == ["0", "3"] and sum(int(m.sum()) for m in masks.values()) == 27
    fix_masks(model, masks)
    assert torch.equal(model[2].weight != 0, masks["0"])
    assert list(initial_masks(model, "random", 0.5, layers=["3"])) == ["3"]


@pytest.mark.parametrize("rule", RULES)
def test_on_the_meta_device(rule: str) -> None:
    with torch.device("meta"):
        model = binarize_weights(create_model("conv2", 10, 1, 8, width=0.1), "bihalf")
        data = [(torch.empty(4, 1, 8, 8), torch.empty(4, dtype=torch.int64))]
        masks = initial_masks(model, rule, 0.5, data)
        fix_masks(model, masks)
    assert all(mask.is_meta and mask.dtype == torch.bool for mask in masks.values())
    assert model(data[0][0]).shape == (4, 10)


@pytest.mark.parametrize("name", ["conv4", "resnet18", "resnet20"])
@pytest.mark.parametrize("rule", ["random", "magnitude", "snip", "synflow"])
def test_networks_with_binary_activations(name: str, rule: str) -> None:
    model = create_model(name, 10, 3, 32, seed=0, width=0.125, activations="approx")
    binarize_weights(model, "bihalf", seed=0, skip=("first", "last", "downsample"), example=torch.zeros(1, 3, 32, 32))
    masks = initial_masks(model, rule, 0.5, batches(20, 32, 3))
    assert all(mask.any() for mask in masks.values())
    scored = len({round(float(mask.float().mean()), 3) for mask in masks.values()})
    assert scored > 1  # some layers keep more than others, so what is scored is no constant


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["sign", "bihalf", "mpt-sign", "mpt-balanced", "irnet"])
def test_a_ticket_holds_the_mask(rule: str, method: str, tmp_path: Any) -> None:
    model = small_net(method)
    masks = initial_masks(model, rule, 0.8, batches())
    fix_masks(model, masks)
    save_ticket(
        model,
        tmp_path / "ticket",
        architecture={"name": "conv2", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 0.1},
    )
    loaded = load_ticket(tmp_path / "ticket")
    for name, mask in masks.items():
        assert torch.equal(loaded.get_submodule(name).weight != 0, mask)
        assert torch.equal(binary_weights(model)[name] != 0, mask)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded(x), model.eval()(x))


# What is refused


def test_what_cannot_be_is_said_in_one_line() -> None:
    model = small_net("bihalf")
    with one_line_error("unknown mask 'edge-popup'; known: magnitude, random, snip, grasp, synflow"):
        initial_masks(model, "edge-popup", 0.5)
    with one_line_error("prune_rate must lie in .0, 1., not 1"):
        initial_masks(model, "random", 1)
    with one_line_error("unknown scope 'network'; known: layer, filter, global"):
        initial_masks(model, "random", 0.5, scope="network")
    with one_line_error("there is no layer 'head' to mask in the model; it has: 0, 2, "):
        initial_masks(model, "random", 0.5, layers=["head"])
    with one_line_error("grasp takes second derivatives, which binary activations have not: take real ones"):
        binary = create_model("conv2", 10, 1, 8, seed=0, activations="clip")
        initial_masks(binarize_weights(binary, "sign", seed=0), "grasp", 0.5, batches())
    for wrong in (lambda network: {}, lambda network: {n: w.detach() > 0 for n, w in network.weights.items()}):
        with one_line_error("<lambda>.* gives no scores of layer '0': they are to be float .10, 1, 3, 3.|gives no"):
            initial_masks(model, InitialMask(wrong), 0.5)
    with one_line_error("the scores of layer '0' by .*NaN|NaN"):
        nan = InitialMask(lambda network: {n: w.detach() * float("nan") for n, w in network.weights.items()})
        initial_masks(model, nan, 0.5)
    with one_line_error("is a mask at initialisation, of a whole network"):
        MASKS["snip"](None)  # type: ignore[arg-type]


def test_batches_that_are_none_or_gone_through_once_are_refused() -> None:
    model = small_net("sign")
    for rule in ("snip", "grasp", "synflow"):
        with one_line_error("the rule looks at images: give it batches"):
            initial_masks(model, rule, 0.5)
        with one_line_error("batches are gone through more than once: give a list"):
            initial_masks(model, rule, 0.5, (pair for pair in batches()))
    assert initial_masks(model, "random", 0.5).keys()


def test_a_loss_that_no_weight_bears_on_gives_no_mask() -> None:
    model = mlp(8, 6, 4)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
    data = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 3]))]
    for rule in ("snip", "grasp"):
        with one_line_error(f"{rule} gives every weight the score 0: none bears on the loss"):
            initial_masks(model, rule, 0.5, data)


@pytest.mark.parametrize("norm", ["group", "layer", "instance", "response"])
def test_synflow_lets_norms_by_the_image_through(norm: str) -> None:
    norms = {
        "group": nn.GroupNorm(2, 4),
        "layer": nn.LayerNorm([4, 8, 8]),
        "instance": nn.InstanceNorm2d(4),
        "response": nn.LocalResponseNorm(2),
    }
    body = [
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        norms[norm],
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 3, bias=False),
    ]
    model, plain = nn.Sequential(*body), nn.Sequential(body[0], nn.Identity(), *body[2:])
    data = [(torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))]
    found, expected = (initial_masks(net, "synflow", 0.8, data) for net in (model, plain))
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    assert all(mask.any() for mask in found.values())


def test_synflow_refuses_a_network_that_is_not_linear() -> None:
    class Standardised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[1:])

    model = nn.Sequential(nn.Linear(8, 6, bias=False), Standardised(), nn.Linear(6, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    with one_line_error("synflow is for networks that positive weights make linear, and behind '0' this one is not"):
        initial_masks(model, "synflow", 0.5, [(torch.randn(2, 8), torch.tensor([0, 1]))])


def test_what_a_rule_of_ones_own_gives_is_checked() -> None:
    model, data = small_net("sign"), batches()
    for given, told in (
        (None, "gives NoneType, and is to give a dictionary of scores by layer"),
        ([1, 2], "gives list, and is to give a dictionary"),
        ("meta", "gives scores of layer '0' on meta, and its weight is on cpu"),
    ):

        def mine(network: Untrained, given: Any = given) -> Any:
            if given == "meta":
                return {name: torch.empty_like(w, device="meta") for name, w in network.weights.items()}
            return given

        with one_line_error(told):
            initial_masks(model, InitialMask(mine), 0.5, data)
    for fields, told in (
        ({"rounds": 0}, "rounds of a mask at initialisation must be a whole number from 1 on, not 0"),
        ({"rounds": 1.5}, "rounds of a mask .*, not 1.5"),
        ({"images": -1}, "images of a mask at initialisation must be a whole number from 0 on, not -1"),
    ):
        with one_line_error(told):
            InitialMask(snip, **fields)
    for layers, told in (("0", "layers must be a list of names, not '0'"), ([], "there is no layer to mask")):
        with one_line_error(told):
            initial_masks(model, "random", 0.5, layers=layers)


def test_grasp_goes_through_attention() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Unflatten(1, (4, 8)), encoder, nn.Flatten(), nn.Linear(32, 3))
    data = [(torch.randn(6, 32), torch.arange(6) % 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = initial_masks(model, "grasp", 0.5, data, layers=["1.linear1", "1.linear2", "3"])
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(mask.numel() for mask in masks.values()) // 2

"""The masks of the next round of iterative pruning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import (
    METHODS,
    binarize_weights,
    binary_weights,
    create_model,
    fix_masks,
    trained_masks,
)
from mpt_bihalf.given_masks import fixed_masks
from mpt_bihalf.parametrization import binary_layers
from tests.reference import one_line_error

# What a chain of 20 % keeps after 1, 5, 10, 15 and 20 rounds.
CHAIN = {0.2: 0.8, 0.67232: 0.32768, 0.892626: 0.107374, 0.964816: 0.035184, 0.988471: 0.011529}


def net(method: str = "dense", seed: int = 0, **options: Any) -> nn.Module:
    model = create_model("conv2", 10, 1, 8, seed=seed, width=0.25)
    return binarize_weights(model, method, seed=seed, **options)


def kept_of(masks: dict[str, Tensor]) -> Tensor:
    return torch.cat([mask.flatten() for mask in masks.values()])


def latents(model: nn.Module) -> dict[str, Tensor]:
    binary = {name: weight.detach() for name, _, weight in binary_layers(model)}
    return binary or {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("method", ["dense", "sign", "bihalf", "irnet"])
def test_a_chain_keeps_exactly_what_is_asked_and_its_masks_are_nested(method: str) -> None:
    model, before = net(method), None
    for number, (rate, fraction) in enumerate(CHAIN.items()):
        masks = trained_masks(model, rate)
        kept = kept_of(masks)
        n = len(kept)
        assert kept.sum() == n - int(np.floor(rate * n + 0.5))
        assert abs(float(kept.sum()) / n - fraction) <= 0.5 / n + 1e-6
        assert before is None or not (kept & ~before).any()
        model, before = net(method, seed=number + 1), kept  # as if training had changed every weight
        fix_masks(model, masks, allow_empty=True)


@pytest.mark.parametrize("scope", ["global", "layer", "filter"])
def test_the_least_of_those_kept_so_far_are_pruned(scope: str) -> None:
    model = net("bihalf")
    fix_masks(model, trained_masks(net("bihalf", seed=3), 0.5, scope=scope), allow_empty=True)
    had, found, weights = fixed_masks(model), trained_masks(model, 0.7, scope=scope), latents(model)

    def groups(tensors: dict[str, Tensor]) -> list[np.ndarray]:
        rows = [t.numpy().reshape(len(t) if scope == "filter" else 1, -1) for t in tensors.values()]
        return [np.concatenate(rows, 1)[0]] if scope == "global" else [row for of_layer in rows for row in of_layer]

    for w, old, new in zip(groups(weights), groups(had), groups(found), strict=True):
        order = [i for i in np.argsort(abs(w), kind="stable") if old[i]]
        wanted = np.zeros(len(w), bool)
        wanted[order[len(order) - (len(w) - int(np.floor(0.7 * len(w) + 0.5))) :]] = True
        assert (new == wanted).all()


def test_of_equal_weights_the_later_are_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False))
    for layer in model:
        nn.init.ones_(layer.weight)  # type: ignore[arg-type]
    masks = trained_masks(model, 0.5)
    assert kept_of(masks).tolist() == [False] * 6 + [True] * 6


@pytest.mark.parametrize("p_pos", [0.5, 0.25])
@pytest.mark.parametrize("method", ["bihalf", "irnet", "abc", "sign", "xnor"])
def test_the_cutoff_is_where_the_sign_of_a_weight_would_turn(method: str, p_pos: float) -> None:
    model = net(method, p_pos=p_pos)
    fix_masks(model, trained_masks(net(method, seed=3), 0.4), allow_empty=True)
    B, had, W = binary_weights(model), fixed_masks(model), latents(model)
    distance = {}
    for name, w in W.items():
        rows, signs = w.double().flatten(1).numpy(), B[name].flatten(1).numpy()
        if method == "bihalf":
            cut = []
            for row, sign in zip(rows, signs, strict=True):
                positive, negative = row[sign > 0], row[sign < 0]
                ends = [positive.min()] * (len(positive) > 0) + [negative.max()] * (len(negative) > 0)
                cut.append(np.mean(ends) if ends else 0)
            cut = np.array(cut)[:, None]
        else:
            cut = {"irnet": rows.mean(1, keepdims=True), "abc": rows.mean()}.get(method, 0.0)
        distance[name] = torch.from_numpy(abs(rows - cut)).view(w.shape)
    all_of = torch.cat([d.flatten() for d in distance.values()])
    kept, new = kept_of(had), kept_of(trained_masks(model, 0.8, "cutoff"))
    lost = kept & ~new
    assert new.sum() == len(new) - int(np.floor(0.8 * len(new) + 0.5))
    assert not (new & ~kept).any()
    assert all_of[lost].max() <= all_of[new].min() + 1e-6
    if METHODS[method].binarizer is METHODS["sign"].binarizer:
        assert torch.equal(new, kept_of(trained_masks(model, 0.8)))


def test_layers_that_share_a_weight_have_one_mask() -> None:
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second)
    masks = trained_masks(model, 0.5)
    assert [*masks] == ["0"]
    assert masks["0"].sum() == 18
    fix_masks(model, masks)
    assert torch.equal(second.weight, first.weight)
    assert (second.weight != 0).sum() == 18


def test_on_the_meta_device_masks_have_their_shapes() -> None:
    with torch.device("meta"):
        masks = trained_masks(net("bihalf"), 0.5, "cutoff")
    assert all(mask.is_meta and mask.dtype == torch.bool for mask in masks.values())


def test_what_cannot_be_is_told_in_one_line() -> None:
    for error, do in {
        "prune_rate must lie": lambda: trained_masks(net(), 1.0),
        "unknown criterion 'size'; known: magnitude, cutoff": lambda: trained_masks(net(), 0.5, "size"),
        "unknown scope": lambda: trained_masks(net(), 0.5, scope="row"),
        "no layer 'x'": lambda: trained_masks(net(), 0.5, layers=["x"]),
        "mpt-sign trains scores": lambda: trained_masks(net("mpt-sign"), 0.5),
        "bop trains signs": lambda: trained_masks(net("bop"), 0.5),
        "magnitude-sign has a mask of its own": lambda: trained_masks(net("magnitude-sign"), 0.5),
        "no cut-off is known of layer '0'": lambda: trained_masks(net("dense"), 0.5, "cutoff"),
        "take the criterion magnitude": lambda: trained_masks(net("rbnn"), 0.5, "cutoff"),
        "only .* are left": lambda: trained_masks(pruned_to(0.8), 0.5),
        "of layer '0', and only": lambda: trained_masks(pruned_to(0.8, "layer"), 0.5, scope="layer"),
        "the weight of layer '0'": lambda: trained_masks(with_nan(), 0.5),
    }.items():
        with one_line_error(error):
            do()


def pruned_to(rate: float, scope: str = "global") -> nn.Module:
    model = net("sign")
    fix_masks(model, trained_masks(model, rate, scope=scope), allow_empty=True)
    return model


def with_nan() -> nn.Module:
    model = net()
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] = float("nan")
    return model

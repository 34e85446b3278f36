from __future__ import annotations

import pickle
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import BINARIZERS, MASKS, METHODS, SCALES, Method, binarize_weights, binary_weights
from mpt_bihalf.layer import Layer
from mpt_bihalf.methods import find_method
from tests.reference import BIT_RATIO_METHODS, MASKED_METHODS, one_line_error


def test_the_methods_of_the_paper_and_its_baselines_are_there() -> None:
    assert {"dense", "sign", "irnet", "bop", *BIT_RATIO_METHODS, *MASKED_METHODS} <= set(METHODS)


def test_a_method_is_found_by_name_or_is_itself() -> None:
    mine = replace(METHODS["sign"], name="mine")
    assert find_method("sign") is METHODS["sign"] and find_method(mine) is mine


@pytest.mark.parametrize("method", ["no-such", "", None, 3, ["sign"]])
def test_an_unknown_method_is_an_error_with_the_known_names(method: object) -> None:
    with one_line_error("unknown method .*mpt-bihalf"):
        find_method(method)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_methods_are_values(method: Method) -> None:
    assert pickle.loads(pickle.dumps(method)) == method == deepcopy(method)
    with pytest.raises(FrozenInstanceError):
        method.scale = SCALES["l1"]


@pytest.mark.parametrize(
    "parts",
    [
        {"trains": "biases", "binarizer": BINARIZERS["sign"]},
        {"trains": "scores", "binarizer": BINARIZERS["sign"]},
        {"trains": "scores", "binarizer": None, "mask": MASKS["edge-popup"]},
        {"trains": "weights", "binarizer": None, "mask": MASKS["magnitude"]},
        {"trains": "signs", "binarizer": None},
        {"trains": "signs", "binarizer": BINARIZERS["sign"], "mask": MASKS["balanced"]},
    ],
)
def test_parts_that_do_not_go_together_are_an_error(parts: dict) -> None:
    with one_line_error():
        Method("mine", **parts)


def test_replacing_a_part_of_a_known_method_is_checked_too() -> None:
    with one_line_error("mpt-bihalf"):
        replace(METHODS["mpt-bihalf"], mask=None)


def every_other(layer: Layer) -> Tensor:
    return (torch.arange(layer.weight.numel()) % 2 == 0).view(layer.weight.shape)


def checkerboard(layer: Layer, mask: Tensor | None) -> Tensor:
    return (torch.arange(layer.weight.numel()) % 4 < 2).view(layer.weight.shape)


def per_filter(layer: Layer, mask: Tensor | None) -> Tensor:
    return torch.arange(1.0, len(layer.weight) + 1).unsqueeze(1)


def of_weight(weight: Tensor, mask: Tensor | None) -> Tensor:
    return per_filter(Layer(weight), mask)


def threefold(g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(positive, 3 * g, alpha * g)


@pytest.mark.parametrize("trains", ["weights", "scores"])
def test_a_method_of_the_users_own_parts_does_what_they_say(trains: str) -> None:
    mine = Method("mine", trains, checkerboard, every_other, per_filter, threefold, threefold)
    layer = binarize_weights(nn.Linear(4, 2, bias=False), mine)
    assert torch.equal(layer.weight, torch.tensor([[1.0, 0, -1, 0], [2, 0, -2, 0]]))
    assert torch.equal(next(iter(binary_weights(layer).values())), torch.tensor([[1.0, 0, -1, 0], [1, 0, -1, 0]]))
    layer.weight.sum().backward()
    part = layer.parametrizations.weight
    trained = part.original if trains == "weights" else part[0].scores
    assert torch.equal(trained.grad, torch.tensor([[3.0, 3, 1, 1], [3, 3, 2, 2]]))


def test_a_scale_of_the_form_of_before_does_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match=r"'mpt-bihalf': a scale takes \(layer, mask\)") as told:
        old = replace(METHODS["mpt-bihalf"], scale=of_weight)
    assert told[0].filename == __file__
    new = replace(METHODS["mpt-bihalf"], scale=per_filter)
    one, other = (binarize_weights(nn.Linear(12, 5), method, seed=0) for method in (old, new))
    assert torch.equal(one.weight, other.weight)


def test_a_known_method_with_one_part_replaced_keeps_the_others() -> None:
    layers = [
        binarize_weights(nn.Linear(12, 5, bias=False), method, seed=0)
        for method in (METHODS["mpt-bihalf"], replace(METHODS["mpt-bihalf"], scale=SCALES["l1"]))
    ]
    bits = [next(iter(binary_weights(layer).values())) for layer in layers]
    assert torch.equal(bits[0], bits[1])
    assert not torch.equal(layers[0].weight, layers[1].weight)


@pytest.mark.parametrize("scope", ["layer", "filter", "global"])
def test_a_users_edge_popup_method_works_in_every_scope(scope: str) -> None:
    mine = Method("mine", "scores", BINARIZERS["sign"], MASKS["edge-popup"], scoped=True)
    model = binarize_weights(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)), mine, 0.5, scope=scope, seed=0)
    assert sum(int((b != 0).sum()) for b in binary_weights(model).values()) == 36


@pytest.mark.parametrize("wrong", [lambda layer, mask: layer.weight.sign(), lambda layer, mask: layer.weight[0] > 0])
def test_a_binarizer_that_gives_no_bool_in_the_shape_of_the_weight_is_named(wrong: Any) -> None:
    method = replace(METHODS["sign"], name="mine", binarizer=wrong)
    with one_line_error(r"<lambda> of method 'mine' gives torch\.\w+ \[[\d, ]+\], and is to give bool \[5, 12\]"):
        binarize_weights(nn.Linear(12, 5), method, seed=0).weight  # noqa: B018


def test_a_mask_rule_that_gives_no_bool_is_named() -> None:
    method = replace(METHODS["magnitude-sign"], mask=lambda layer: None)
    with one_line_error("gives NoneType, and is to give bool"):
        binarize_weights(nn.Linear(12, 5), method, seed=0, allow_empty=True).weight  # noqa: B018

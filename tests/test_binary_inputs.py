from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import METHODS, binarize_weights, binary_layers, create_model
from mpt_bihalf.activations import BinaryActivation
from mpt_bihalf.binarizable import layers_of
from mpt_bihalf.binary_inputs import ScaleStays, layers_with_binary_input
from mpt_bihalf.models import MODELS
from mpt_bihalf.usage import usage

IMAGE = torch.empty(1, 3, 32, 32, device="meta")


def found(model: nn.Module, example: Any) -> tuple[set[str], set[str]]:
    """By a trace, and by a run on the example."""
    layers = layers_of(model)
    return layers_with_binary_input(model, layers, None), layers_with_binary_input(
        model, layers, usage(model, layers, example)
    )


REAL = {
    "resnet": {"conv1", "fc"},
    "conv": {"0"},
    "vgg_small": {"features.0"},
    "vgg16": {"features.0"},
    "inception_v3": {"conv", "fc"},
    "shufflenet": {"conv1", "fc"},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("wide_resnet34", "wide_resnet50", "resnet34") else name
        for name in MODELS
    ],
)
def test_in_binary_networks_all_layers_but_those_of_real_inputs(name: str) -> None:
    model = create_model(name, width=0.125, activations="clip", seed=0)
    real = next(layers for prefix, layers in REAL.items() if name.removeprefix("wide_").startswith(prefix))
    real = real | {layer for layer in layers_of(model) if "downsample" in layer}
    assert found(model, IMAGE) == (layers_of(model).keys() - real,) * 2
    assert found(create_model(name, width=0.125, seed=0), IMAGE) == (set(), set())


class Own(nn.Module):
    """`body`, given what `between` makes of signs."""

    def __init__(self, between: Any, body: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.sign = nn.Linear(6, 8), BinaryActivation()
        self.body = nn.Linear(8, 4) if body is None else body
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.between(self.sign(self.first(x))))


class Signs(BinaryActivation):
    pass


KEPT = {
    "nothing": lambda s: s,
    "identity": nn.Identity(),
    "flatten": nn.Flatten(),
    "view": lambda s: s.view(-1, 2, 4).reshape(-1, 8),
    "transposed twice": lambda s: s.transpose(0, 1).permute(1, 0),
    "a maximum": lambda s: F.max_pool1d(s.repeat(1, 2), 2),
    "an average": lambda s: F.avg_pool1d(s.repeat(1, 2), 2),
    "torch.cat": lambda s: torch.cat([s[:, :3], s[:, 3:]], 1),
    "halves": lambda s: torch.cat(s.chunk(2, 1)[::-1], 1),
    "torch.sign": lambda s: (s * 0.3).sign(),
    "flattened by its size": lambda s: s.view(s.size(0), 4, 2).reshape(s.shape[0], -1).view_as(s),
    "moved": lambda s: s.movedim(1, 0).swapaxes(0, 1).flip(1).roll(1, 1).mT.mT,
    "picked": lambda s: s.index_select(1, torch.arange(8)),
}
LOST = {
    "a sum": lambda s: s + s,
    "a product": lambda s: s * 0.5,
    "a function": torch.tanh,
    "signs and others": lambda s: torch.cat([s[:, :4], s[:, 4:] * 0.5], 1),
    "in place": lambda s: F.hardtanh(s, -0.5, 0.5, inplace=True),
}


@pytest.mark.parametrize("between", KEPT)
def test_what_leaves_signs_signs_may_stand_between(between: str) -> None:
    assert found(Own(KEPT[between]), torch.zeros(5, 6)) == ({"body"}, {"body"})


@pytest.mark.parametrize("between", LOST)
def test_what_makes_others_of_signs_may_not(between: str) -> None:
    assert found(Own(LOST[between]), torch.zeros(5, 6)) == (set(), set())


def test_pooling_modules_may_stand_between() -> None:
    kinds = nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(2)
    for pool in (*kinds, nn.Sequential(nn.Identity(), nn.MaxPool2d(3, 1, padding=1), nn.AvgPool2d(2))):
        flat = nn.Flatten(), nn.Linear(8 * 4, 4)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), Signs(), pool, *flat)
        assert found(model, torch.zeros(2, 3, 6, 6)) == ({"4"}, {"4"}), pool


def test_a_dropout_is_seen_without_an_example() -> None:
    """In evaluation, in which an example is run, it does nothing; in training its output is no sign."""
    by_trace, _ = found(Own(nn.Dropout(0.3)), torch.zeros(5, 6))
    assert by_trace == set()


class Twice(nn.Module):
    """One layer, given signs and then others."""

    def __init__(self, others: bool) -> None:
        super().__init__()
        self.sign, self.layer, self.others = BinaryActivation(), nn.Linear(4, 4), others

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.sign(x))
        return self.layer(x if self.others else self.sign(x))


def test_each_call_of_a_layer_has_to_be_given_signs() -> None:
    assert found(Twice(others=False), torch.zeros(2, 4)) == ({"layer"}, {"layer"})
    assert found(Twice(others=True), torch.zeros(2, 4)) == (set(), set())


class Uncalled(nn.Module):
    """A layer whose weight its parent uses: in a call of its own, or beside one of the layer."""

    def __init__(self, called: bool) -> None:
        super().__init__()
        self.sign, self.layer, self.called = BinaryActivation(), nn.Linear(4, 4), called

    def forward(self, x: Tensor) -> Tensor:
        s = self.sign(x)
        y = F.linear(s, self.layer.weight)
        return y + self.layer(s) if self.called else y


@pytest.mark.parametrize("called", [False, True])
def test_a_weight_that_is_used_without_calling_its_layer_keeps_its_scale(called: bool) -> None:
    assert found(Uncalled(called), torch.zeros(2, 4)) == (set(), set())
    x, model = torch.randn(5, 4), Uncalled(called)
    outputs = [
        binarize_weights(deepcopy(model), "sign", seed=0, scale_on=scale_on)(x) for scale_on in ("weight", "output")
    ]
    assert torch.equal(*outputs)


def test_attentions_last_layer_keeps_its_scale() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sign, self.attention = BinaryActivation(), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            s = self.sign(x)
            return self.attention(s, s, s)[0]

    assert found(Attention(), torch.zeros(2, 3, 4)) == (set(), set())


def test_a_layer_with_a_forward_pass_of_its_own_keeps_its_scale() -> None:
    class Squashed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).tanh()

    assert found(Own(KEPT["nothing"], Squashed(8, 4)), torch.zeros(5, 6)) == (set(), set())


def test_layers_that_share_a_weight_move_it_together_or_not_at_all() -> None:
    class Tied(nn.Module):
        def __init__(self, other_is_binary: bool) -> None:
            super().__init__()
            self.sign, self.one, self.other = BinaryActivation(), nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.weight = self.one.weight
            self.other_is_binary = other_is_binary

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(self.sign(x))
            return self.other(self.sign(y) if self.other_is_binary else y)

    x = torch.zeros(2, 4)
    assert found(Tied(other_is_binary=True), x) == ({"one", "other"},) * 2
    assert found(Tied(other_is_binary=False), x) == (set(), set())


class Branching(nn.Module):
    """Which torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.sign, self.layer = BinaryActivation(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.sign(x)) if len(x) > 1 or x.sum() > 0 else x


def scales_of(model: nn.Module) -> dict[str, str]:
    return {name: part.scale_on for name, part, _ in binary_layers(model)}


def test_a_network_that_cannot_be_traced_keeps_its_scales_and_says_so() -> None:
    with pytest.warns(ScaleStays, match=r"cannot trace Branching .* with example=") as told:
        model = binarize_weights(Branching(), "sign", seed=0)
    assert told[0].filename == __file__
    assert scales_of(model) == {"layer": "weight"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = binarize_weights(Branching(), "sign", seed=0, example=torch.zeros(2, 4))
        assert scales_of(model) == {"layer": "output"}
        assert scales_of(binarize_weights(Branching(), "sign", seed=0, scale_on="weight")) == {"layer": "weight"}
        binarize_weights(Branching(), "dense", seed=0)


def test_the_trace_of_a_model_leaves_nothing_in_it() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sign, self.layer, self.seen, self.calls = BinaryActivation(), nn.Linear(4, 4), [], 0
            self.register_buffer("mean", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.mean.mul_(0.9)
            self.seen.append(x)
            return self.layer(self.sign(x + torch.rand(4)))

    model, state = Keeps(), torch.random.get_rng_state()
    hooked: list[Any] = []
    model.layer.register_forward_hook(lambda *told: hooked.append(told))
    assert layers_with_binary_input(model, layers_of(model), None) == {"layer"}
    assert (model.seen, model.calls, float(model.mean), hooked) == ([], 0, 1, [])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training


def test_a_model_is_left_as_it_was_by_the_look_at_it() -> None:
    model = create_model("conv2", width=0.1, activations="clip", seed=0)
    before = deepcopy(model)
    found(model, IMAGE)
    assert model.state_dict().keys() == before.state_dict().keys()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert model.training


def test_a_scale_that_is_not_one_for_each_filter_stays_on_the_weight() -> None:
    def each_weight(layer: Any, mask: Tensor | None) -> Tensor:
        return layer.weight.abs() + 1

    def each_input(layer: Any, mask: Tensor | None) -> Tensor:
        return layer.weight.new_ones(1, *layer.weight.shape[1:])

    def each_filter(layer: Any, mask: Tensor | None) -> Tensor:
        return layer.weight.abs().flatten(1).sum(1).view(-1, 1)

    for scale, expected in ((each_weight, "weight"), (each_input, "weight"), (each_filter, "output")):
        model = binarize_weights(Own(KEPT["nothing"]), "sign", seed=0, scale=scale)
        assert scales_of(model) == {"first": "weight", "body": expected}


def test_where_the_scale_is_has_to_be_known() -> None:
    with pytest.raises(ValueError, match=r"^unknown scale_on 'input'; known: output, weight$"):
        binarize_weights(nn.Linear(2, 2), "sign", scale_on="input")
    assert METHODS  # the model is as it was

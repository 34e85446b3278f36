"""How a network uses its weights: each network here says by itself what stands where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import MODELS, create_model
from mpt_bihalf.binarizable import layers_of
from mpt_bihalf.models import find_network
from mpt_bihalf.usage import Usage, alone, usage
from tests.reference import one_line_error

EVERY = torchvision.models.list_models(module=torchvision.models)
# A kind each.
QUICK = ["alexnet", "convnext_tiny", "googlenet", "inception_v3", "mobilenet_v3_small", "regnet_y_400mf"]
QUICK += ["resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vit_b_16"]


class Network(nn.Module):
    """Layers of 4 in and 4 out by their names, in this order, and a forward pass of one's own."""

    def __init__(self, names: str, run: Callable[[Any, Tensor], Any], layer: Callable[[], nn.Module] | None = None):
        super().__init__()
        for name in names.split():
            self.add_module(name, layer() if layer else nn.Linear(4, 4))
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def used(model: nn.Module, example: Any = None) -> Usage:
    return usage(model, layers_of(model), torch.randn(2, 4) if example is None else example)


def ends(model: nn.Module, example: Any = None) -> tuple[list[str], list[str]]:
    return used(model, example)[:2]


class Double(torch.autograd.Function):
    """Nothing that torch's functions know of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


def in_place(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros(2, 8)
    out[:, :4] = m.a(x)
    out[:, 4:].add_(1)
    return m.b(out[:, :4])


def recurrent(m: Any, x: Tensor) -> Tensor:
    state = torch.zeros_like(x)
    for _ in range(3):
        state = torch.tanh(m.inner(x) + m.again(state))
    return m.head(state)


def beside_a_table(m: Any, x: Tensor) -> Tensor:
    return m.head(m.stem(x) + m.position(torch.ones(2, 4)))


@pytest.mark.parametrize(
    ("names", "run", "first", "last"),
    [
        ("head stem", lambda m, x: m.head(m.stem(x).relu()), ["stem"], ["head"]),
        ("one two stem", lambda m, x: (m.one(y := m.stem(x)), {"two": m.two(y)}), ["stem"], ["one", "two"]),
        ("a b c", lambda m, x: m.c(m.a(x) + m.b(x)), ["a", "b"], ["c"]),
        ("c a b", lambda m, x: m.b(x + m.a(x)) * m.c(m.a(x)), ["a"], ["b", "c"]),
        ("aux a b", lambda m, x: m.b(m.a(x)) if not m.training else m.aux(x), ["a"], ["b"]),
        ("b a", lambda m, x: m.b(Double.apply(m.a(x))), ["a"], ["b"]),
        ("b a", in_place, ["a"], ["b"]),
        ("b a", lambda m, x: m.b(m.a(m.b(m.a(x)))), ["a"], ["b"]),
        ("b a", lambda m, x: F.linear(x @ m.a.weight.T, m.b.weight, m.b.bias), ["a"], ["b"]),
        ("q k", lambda m, x: m.q(x) @ m.k(x).T, ["q", "k"], ["q", "k"]),
        ("head again inner", recurrent, ["inner"], ["head"]),
        ("position head stem", beside_a_table, ["stem"], ["head"]),
    ],
)
def test_first_and_last_are_by_the_way_from_input_to_output(
    names: str, run: Callable[[Any, Tensor], Any], first: list[str], last: list[str]
) -> None:
    assert ends(Network(names, run)) == (first, last)


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_uses_the_weight_of_its_output_without_calling_that(batch_first: bool) -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
    seen = used(attention, (torch.randn(3, 2, 4),) * 3)
    assert seen == (["out_proj"], ["out_proj"], ["out_proj"], [], [])
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=batch_first)
    assert used(block, torch.randn(3, 2, 4)) == (["self_attn.out_proj"], ["linear2"], list(layers_of(block)), [], [])


def test_two_inputs_each_have_a_first_layer() -> None:
    two = Network("head b a", lambda m, x: m.head(m.a(x["one"]) * m.b(x["other"])))
    given = {"one": torch.randn(2, 4), "other": torch.randn(2, 4)}
    assert ends(two, (given,)) == ends(two, {"x": given}) == (["a", "b"], ["head"])


def test_a_weight_that_is_computed_has_a_place_in_the_order() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[2])
    assert ends(model) == (["0"], ["2"])


# Weights as they are, and changed


class Own(nn.Linear):
    """A layer with a forward pass of its own."""

    def __init__(self, apply: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(4, 4)
        self.apply_to = apply
        self.gain = nn.Parameter(torch.ones(4, 1))
        self.a, self.b = nn.Parameter(torch.ones(1, 4)), nn.Parameter(torch.ones(4, 1))
        self.register_buffer("u", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(self, x)


AS_THEY_ARE: list[Callable[[Any, Tensor], Tensor]] = [
    lambda m, x: F.linear(x, m.weight, m.bias),
    lambda m, x: F.linear(F.pad(x, (0, 1))[:, :4], m.weight.to(x.dtype)),
    lambda m, x: F.linear(x, m.weight.bfloat16().float()),  # rounded alike
    lambda m, x: x @ m.weight.t(),
    lambda m, x: (m.weight @ x.T).T,
    lambda m, x: torch.einsum("bi,oi->bo", x, m.weight),
    lambda m, x: torch.einsum("boi,oi->bo", x.unsqueeze(1).expand(-1, 4, -1), m.weight),
    lambda m, x: F.conv1d(x.unsqueeze(2), m.weight.unsqueeze(2)).squeeze(2),
    lambda m, x: torch.addmm(m.bias, x, m.weight.T.contiguous()),
    lambda m, x: F.linear(x.expand(3, *x.shape).transpose(1, 2).transpose(1, 2), m.weight)[0],
    lambda m, x: F.linear(x.expand(3, 2, 4).permute(2, 1, 0).reshape(3, 2, 4), m.weight)[0],
    lambda m, x: F.linear(x, m.weight) / m.weight.norm(),  # its output is changed, not it
    lambda m, x: F.linear(x, m.weight) + x @ m.a.T @ m.b.T,  # a second branch of real weights
    lambda m, x: F.embedding(x.argmax(1), m.weight),
]
CHANGED: list[Callable[[Any, Tensor], Tensor]] = [
    lambda m, x: F.linear(x, (m.weight - m.weight.mean(1, keepdim=True)) / m.weight.std(1, keepdim=True), m.bias),
    lambda m, x: F.linear(x, F.batch_norm(m.weight.view(1, 4, -1), None, None, training=True).view(4, 4)),
    lambda m, x: F.linear(x, m.weight * m.gain),
    lambda m, x: F.linear(x, m.weight + m.b @ m.a),
    lambda m, x: F.linear(x, m.weight / (m.u @ m.weight).norm()),  # an operator, but not the layer's
    lambda m, x: F.linear(x, F.normalize(m.weight)),
    lambda m, x: F.linear(x, m.weight.flip(0)),
    lambda m, x: F.linear(x, m.weight[:2].repeat(2, 1)),
    lambda m, x: F.linear(x, m.weight.clone().mul_(2)),
    lambda m, x: F.linear(x, m.weight.data.mul_(m.gain)),
    lambda m, x: F.linear(x, m.weight * x.mean()),
    lambda m, x: (x.unsqueeze(1) * m.weight).sum(2),
]


@pytest.mark.parametrize("index", range(len(AS_THEY_ARE)))
def test_a_weight_in_any_layout_is_used_as_it_is(index: int) -> None:
    assert alone(Own(AS_THEY_ARE[index])) == ([""], [""], [""], [], [])


@pytest.mark.parametrize("index", range(len(CHANGED)))
def test_a_weight_of_which_something_is_made_is_changed(index: int) -> None:
    seen = alone(Own(CHANGED[index]))
    assert (seen.used, seen.changed) == ([""], [""])


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, (3, 1), groups=2), nn.Conv3d(2, 3, 2), nn.Linear(3, 2)]
)
def test_every_kind_of_layer_is_tried_alone(layer: nn.Module) -> None:
    assert alone(layer) == ([""], [""], [""], [], [])


# No trace


def test_the_model_the_example_and_torchs_state_stay_as_they_are() -> None:
    def noisy(m: Any, x: Tensor) -> Tensor:
        m.passes = getattr(m, "passes", 0) + 1
        m.buffer.add_(1)
        x.mul_(2)
        return F.dropout(m.a(x), training=True) + torch.rand(()).item()  # which no device without values can tell

    model = Network("a", noisy).train()
    model.register_buffer("buffer", torch.zeros(1))
    passes: list[Any] = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: passes.append(1))
        module.register_forward_pre_hook(lambda *_: passes.append(1))
    hooks = len(model._forward_hooks), len(model.a._forward_pre_hooks)
    example, random = torch.ones(2, 4), torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    assert ends(model, example) == (["a"], ["a"])
    assert not passes and (len(model._forward_hooks), len(model.a._forward_pre_hooks)) == hooks
    assert not hasattr(model, "passes") and model.training and torch.equal(example, torch.ones(2, 4))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled() is fast
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.a.weight.grad is None and torch.is_grad_enabled()


def test_a_pass_that_needs_values_is_run_where_the_model_is(device: torch.device) -> None:
    model = Network("two one", lambda m, x: m.two(m.one(x)) if x.sum() > 0 else x).to(device)
    assert ends(model, torch.ones(2, 4, device=device)) == (["one"], ["two"])
    with one_line_error("^example, on the meta device: the model does not take it: RuntimeError: "):
        used(model, torch.ones(2, 4, device="meta"))


def test_an_example_that_the_model_does_not_take_is_an_error() -> None:
    with one_line_error("^example: the model does not take it: RuntimeError: .*shapes"):
        used(Network("a", lambda m, x: m.a(x)), torch.randn(2, 5))
    with one_line_error("^example: the model does not take it: TypeError: "):
        used(Network("a", lambda m, x: m.a(x)), (torch.randn(2, 4), 1))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")])
def test_it_is_seen_in_any_mode_of_torch(context: Any) -> None:
    with context():
        assert ends(Network("b a", lambda m, x: m.b(m.a(x)))) == (["a"], ["b"])


# The networks that runs are recorded of


def assert_both_orders_agree(name: str, image_size: int) -> None:
    with torch.device("meta"):
        model = create_model(name, 10, 3, image_size)
    layers = list(layers_of(model))
    seen = used(model, torch.empty(1, 3, image_size, image_size, device="meta"))
    assert (seen.first, seen.last, seen.changed) == (layers[:1], layers[-1:], [])
    assert sorted(seen.used) == sorted(layers)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [32, pytest.param(224, marks=pytest.mark.slow)])
def test_order_of_use_and_of_making_agree_on_the_packages_networks(name: str, size: int) -> None:
    assert_both_orders_agree(name, size)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EVERY]
)
def test_order_of_use_and_of_making_agree_on_torchvisions_classifiers(name: str) -> None:
    assert_both_orders_agree(f"torchvision:{name}", find_network(f"torchvision:{name}").image_size)

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from mpt_bihalf import METHODS, bake_weights, binarize_weights, binary_layers, binary_weights, create_model
from mpt_bihalf.activations import BinaryActivation
from mpt_bihalf.output_scale import is_on_output, output_scale, put_scales_behind, split, take_scales_off
from mpt_bihalf.parametrization import binary_parts

BINARY = [method for method in METHODS if method != "dense"]


def images(dtype: torch.dtype = torch.float32, count: int = 32, seed: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=g).to(dtype), torch.randint(10, (count,), generator=g)


def network(name: str, method: str, dtype: torch.dtype = torch.float32, **choices: Any) -> nn.Module:
    model = create_model(name, width=0.125, activations="clip", seed=0)
    skip = () if name.startswith("conv") else ("first", "last", "downsample")
    return binarize_weights(model, method, 0.5, seed=1, skip=skip, **choices).to(dtype)


class Sums(TorchFunctionMode):
    """Keeps what layers compute, before any scale."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (F.linear, F.conv2d):
            self.found.append(result.detach().clone())
        return result


@pytest.mark.parametrize("method", BINARY)
@pytest.mark.parametrize("name", ["conv4", "resnet18"])
def test_what_a_layer_computes_before_its_scale_is_a_whole_number(name: str, method: str) -> None:
    model = network(name, method)
    x, _ = images(count=4)
    with Sums() as sums:
        model(x)
    of_real_inputs = 1 if name == "conv4" else 5  # the first layer; the stem, three shortcuts and the last one
    whole = [bool((z == z.round()).all()) for z in sums.found]
    assert whole.count(False) == of_real_inputs
    assert whole.count(True) == sum(part.scale_on == "output" for _, part, _ in binary_layers(model))
    assert any((z == 0).any() for z in sums.found)


@pytest.mark.parametrize("method", BINARY)
@pytest.mark.parametrize("name", ["conv4", "resnet18"])
def test_of_a_baked_layer_a_hook_sees_the_whole_number(name: str, method: str) -> None:
    model = network(name, method).eval()
    x, _ = images(count=4)
    baked, found = bake_weights(model), []
    for layer, part, _ in binary_layers(model):
        if part.scale_on == "output":
            plain: Any = baked.get_submodule(layer)
            plain.register_forward_hook(lambda module, args, z: found.append(z), prepend=True)
            assert set(plain.weight.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(baked(x), model(x))
    assert found and all((z == z.round()).all() for z in found)


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor], bound: float) -> None:
    assert one.keys() == other.keys()
    for name, g in one.items():
        assert (g - other[name]).norm() <= bound * g.norm(), name


def in_both_layouts(model: nn.Module, x: Tensor, y: Tensor) -> tuple[list[dict[str, Tensor]], bool]:
    """Loss and gradients; and whether the first layer, of real inputs, rounds to the same sides of -1, 0 and 1."""
    activation, sides, found = next(m for m in model.modules() if isinstance(m, BinaryActivation)), [], []
    activation.register_forward_hook(lambda m, args, s: sides.append(torch.stack([args[0] > t for t in (-1, 0, 1)])))
    for layout in (torch.contiguous_format, torch.channels_last):
        model.zero_grad()
        model.to(memory_format=layout)
        loss, by_name = gradients(model, x.contiguous(memory_format=layout), y)
        found.append({"loss": loss, **{name: g.clone() for name, g in by_name.items()}})
    return found, torch.equal(*sides)


@pytest.mark.parametrize("method", ["sign", "bihalf", "mpt-sign", "mpt-bihalf"])
@pytest.mark.parametrize(
    ("name", "dtype", "bound"), [("conv4", torch.float32, 1e-4), ("resnet18", torch.float64, 1e-10)]
)
def test_gradients_do_not_hang_on_the_layout_in_memory(
    name: str, dtype: torch.dtype, bound: float, method: str
) -> None:
    tried = (in_both_layouts(network(name, method, dtype), *images(dtype, seed=seed)) for seed in range(9))
    (one, other), _ = next(found for found in tried if found[1])
    assert_near(one, other, bound)


def a_layer(size: float) -> Any:
    return lambda layer, mask: layer.weight.new_full((), size)


def a_filter(layer: Any, mask: Tensor | None) -> Tensor:
    weight = layer.weight
    powers = 1 + torch.arange(len(weight), device=weight.device) % 4
    return (2.0**-powers).to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))


@pytest.mark.parametrize(
    ("dtype", "digits"), [pytest.param(torch.float32, 6, marks=pytest.mark.slow), (torch.float64, 12)]
)
def test_no_scale_before_a_batch_norm_does_anything(dtype: torch.dtype, digits: int) -> None:
    """As the loss does not hang on it (eps aside), and `scaled` steps of W neither."""
    found = []
    for scale in (a_layer(2**-3), a_layer(2**-1), a_filter):
        model = network("resnet18", "sign", dtype, scale=scale)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-30
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
        for _ in range(3):
            optimizer.zero_grad()
            losses.append(gradients(model, *images(dtype))[0])
            optimizer.step()
        found.append(torch.stack(losses))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=10.0**-digits, atol=0)


LAYERS = {
    "linear": (lambda: nn.Linear(12, 5), (4, 12)),
    "linear without bias": (lambda: nn.Linear(12, 5, bias=False), (4, 12)),
    "linear in 3d": (lambda: nn.Linear(12, 5), (4, 3, 12)),
    "a single vector": (lambda: nn.Linear(12, 5), (12,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), (2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 4, 4, 4)),
    "a single image": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "groups and dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2, padding=(2, 1)), (2, 4, 9, 8)),
    "same, an even kernel": (lambda: nn.Conv2d(4, 6, (2, 3), padding="same"), (2, 4, 7, 7)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 7)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 7, 7)),
    "reflect, same": (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (2, 4, 7, 7)),
}


def pair(make: Any, method: str, **choices: Any) -> tuple[nn.Module, nn.Module]:
    """A sign and a layer, with the scale on the weight and on the output, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(BinaryActivation("approx"), make()).double()
    on = [
        binarize_weights(deepcopy(model), method, 0.5, seed=1, scale_on=scale_on, **choices)
        for scale_on in ("weight", "output")
    ]
    assert [is_on_output(model[1]) for model in on] == [False, True]
    return on[0], on[1]


def assert_alike(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Outputs, and gradients of all that is trained and of the input."""
    results = []
    for model in (one, other):
        given = x.clone().requires_grad_()
        y = model(given)
        g = torch.autograd.grad(y.sin().sum(), [given, *(p for p in model.parameters() if p.requires_grad)])
        results.append((y, *g))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_the_same_function_with_the_same_gradients(kind: str) -> None:
    make, shape = LAYERS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert_alike(*pair(make, "mpt-bihalf", train_affine=True), x)
    assert_alike(*pair(make, "irnet"), x)


RULES = [(method, "latent_gradient", rule) for method in ("sign", "bihalf") for rule in ("scaled", "unscaled", "ede")]
RULES += [(method, "score_gradient", rule) for method in ("mpt-sign", "mpt-balanced") for rule in ("latent", "binary")]


@pytest.mark.parametrize(("method", "part", "rule"), RULES)
def test_each_rule_gives_what_it_gives_with_the_scale_on_the_weight(method: str, part: str, rule: str) -> None:
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert_alike(*pair(lambda: nn.Linear(12, 5), method, **{part: rule}), x)


@pytest.mark.parametrize("method", [method for method in BINARY if METHODS[method].mask is not None])
def test_a_filter_and_a_layer_that_keep_nothing_have_their_gradients(method: str) -> None:
    """Where alpha is 0 nothing can be divided by it."""
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for scores in (lambda s: s.mul_(torch.tensor([[1e-9], *[[1.0]] * 4])), lambda s: s):
        one, other = pair(lambda: nn.Linear(12, 5), method)
        for model in (one, other):
            for _, part, weight in binary_layers(model):
                with torch.no_grad():
                    scores(weight if part.scores is None else part.scores)
        assert_alike(one, other, x)
    one, other = pair(lambda: nn.Linear(12, 5), method)
    for model in (one, other):
        for _, part, weight in binary_layers(model):
            part.fixed_mask = torch.zeros_like(weight, dtype=torch.bool)
    assert not any(bits.any() for bits in binary_weights(other).values())
    assert_alike(one, other, x)


def test_against_the_formula() -> None:
    """y = alpha conv(s, B) + bias; dL/dW = alpha g = dL/dB under `scaled`."""
    torch.manual_seed(0)
    model = nn.Sequential(BinaryActivation(), nn.Conv2d(4, 6, 3)).double()
    model = binarize_weights(model, "bihalf", seed=1)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    y = model(x)
    y.square().sum().backward()
    (_, part, weight), bias = next(binary_layers(model)), model[1].bias
    binary, alpha = part.scaled_binary(weight)
    binary = binary.detach().requires_grad_()
    s = torch.where(x >= 0, 1.0, -1.0).double()
    expected = alpha * F.conv2d(s, binary) + bias.detach().view(-1, 1, 1)
    assert torch.equal(y, expected)
    (of_binary,) = torch.autograd.grad(expected.square().sum(), binary)
    torch.testing.assert_close(weight.grad, of_binary, rtol=1e-12, atol=1e-12)


def test_split_gives_the_parts_of_a_weight() -> None:
    binary = torch.tensor([[1.0, -1, 0], [-1, 0, -1], [0, 0, 0], [1, 1, 1]])
    alpha = torch.tensor([0.3, 1e-30, 0.0, 7.7])
    found = split(alpha[:, None] * binary)
    assert torch.equal(found[0], binary)
    assert torch.equal(found[1], alpha)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_mixed_precision_a_sum_is_a_whole_number_and_the_scale_not_rounded(dtype: torch.dtype) -> None:
    model = nn.Sequential(BinaryActivation(), nn.Linear(200, 5))
    model = binarize_weights(model, "sign", seed=0, scale=a_layer(0.3))
    x = torch.randn(8, 200, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype):
        y = model(x)
        y.float().square().sum().backward()
    z = F.linear(torch.where(x >= 0, 1.0, -1.0), binary_weights(model)["1"])
    expected = (z * 0.3).to(dtype) + model[1].bias.to(dtype)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=torch.finfo(dtype).eps, atol=0)
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
    torch.testing.assert_close(bake_weights(model).half()(x.half()).float(), expected.float(), rtol=1e-2, atol=1e-2)


def test_nothing_waits_for_a_device() -> None:
    with torch.device("meta"):
        model = network("resnet18", "mpt-bihalf")
        x, y = torch.empty(2, 3, 32, 32), torch.empty(2, dtype=torch.int64)
    F.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_it_compiles_in_one_graph_and_traces() -> None:
    model = network("conv2", "mpt-bihalf")
    x, y = images(count=2)
    loss, expected = gradients(model, x, y)
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True)
    compiled_loss, found = gradients(compiled, x, y)
    torch.testing.assert_close(compiled_loss, loss)
    assert_near(expected, {name.removeprefix("_orig_mod."): g for name, g in found.items()}, 1e-4)
    model.eval()
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(model, (x,))(x), model(x))
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), model(x))


def test_transforms_of_functions_see_the_same() -> None:
    model = network("conv2", "mpt-sign").double().eval()
    x, y = images(torch.float64, 3)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(trained, x, y)
    for image in range(3):
        model.zero_grad()
        F.cross_entropy(model(x[image : image + 1]), y[image : image + 1]).backward()
        for name, parameter in model.named_parameters():
            if name in each:
                torch.testing.assert_close(each[name][image], parameter.grad, rtol=1e-9, atol=1e-12)


def test_copies_have_it_and_removing_the_parametrization_takes_it_off() -> None:
    _, model = pair(lambda: nn.Conv2d(4, 6, 3), "sign")
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    copy, y = deepcopy(model), model(x)
    assert is_on_output(copy[1])
    assert torch.equal(copy(x), y)
    parametrize.remove_parametrizations(model[1], "weight")
    assert type(model[1]) is nn.Conv2d
    torch.testing.assert_close(model(x), y)


def test_what_comes_between_b_and_the_layer_takes_the_scale_back_to_the_weight() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * torch.linspace(1, 2, weight.shape[1], dtype=weight.dtype)

    one, other = pair(lambda: nn.Linear(12, 5), "sign")
    for model in (one, other):
        parametrize.register_parametrization(model[1], "weight", Doubled())
    assert not is_on_output(other[1])
    assert_alike(one, other, torch.randn(6, 12, dtype=torch.float64))


def test_a_state_goes_on_with_its_scale_where_it_was() -> None:
    one, other = pair(lambda: nn.Linear(12, 5), "mpt-sign")
    key = "1.parametrizations.weight.0._extra_state"
    before = {name: value for name, value in one.state_dict().items() if name != key}  # as before it was written
    x = torch.randn(6, 12, dtype=torch.float64)
    for state in (one.state_dict(), before):
        model = deepcopy(other)
        model.load_state_dict(deepcopy(state))
        assert not is_on_output(model[1])
        assert torch.equal(model(x), one(x))
        model.load_state_dict(other.state_dict())
        assert is_on_output(model[1])
        assert torch.equal(model(x), other(x))
    one.load_state_dict(other.state_dict())  # whose maker asked for the weight
    assert not is_on_output(one[1])


def test_layers_that_share_a_weight_bake_as_they_are() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sign, self.one, self.other = BinaryActivation(), nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.weight, self.again = self.one.weight, self.one

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.sign(self.other(self.sign(self.one(self.sign(x))))))

    model, x = binarize_weights(Tied(), "sign", seed=0, scale=a_layer(0.3)).eval(), torch.randn(5, 4)
    assert [part.scale_on for _, part, _ in binary_parts(model)] == ["output"] * 2
    baked: Any = bake_weights(model)
    assert torch.equal(baked(x), model(x))
    assert baked.again is baked.one
    assert baked.one.weight is baked.other.weight
    take_scales_off(baked, ["one", "other", "again"])
    torch.testing.assert_close(baked(x), model(x))


@contextmanager
def hooked(layer: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, y: seen.append(y))
    yield seen
    handle.remove()


def test_hooks_see_a_layers_output_in_training_and_baked() -> None:
    _, model = pair(lambda: nn.Linear(12, 5), "sign")
    x = torch.randn(6, 12, dtype=torch.float64)
    with hooked(model[1]) as seen:
        y, baked = model(x), bake_weights(model)
        assert torch.equal(baked(x), y)
    assert len(seen) == 2  # a copy of a model has copies of its hooks, which note in the same list
    assert all(torch.equal(of_hook, y) for of_hook in seen)


def test_a_scale_is_put_behind_a_layer_and_taken_off() -> None:
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
    model, bias = nn.Sequential(layer, nn.ReLU()), layer.bias
    with torch.no_grad():
        layer.weight.sign_()
        expected = F.conv2d(x, layer.weight * 0.5, layer.bias)
    put_scales_behind(model, {"0": torch.tensor(0.5)})
    torch.testing.assert_close(layer(x), expected)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.output_scale.bias"]
    assert [name for name, _ in model.named_buffers()] == ["0.output_scale.alpha"]
    assert layer.output_scale.bias is bias
    take_scales_off(model, ["0", "1"])
    assert layer.bias is bias
    assert not layer._forward_hooks and not [*layer.children()]
    torch.testing.assert_close(layer(x), expected)


def test_what_is_baked_is_binarized_again_from_its_weights_in_use() -> None:
    _, model = pair(lambda: nn.Linear(12, 5), "bihalf")
    x = torch.randn(6, 12, dtype=torch.float64)
    again = binarize_weights(bake_weights(model), "sign", init="keep", scale=a_layer(0.25))
    expected = {name: 0.25 * bits for name, bits in binary_weights(model).items()}
    torch.testing.assert_close(again[1].weight, expected["1"])
    torch.testing.assert_close(again(x), F.linear(model[0](x), expected["1"], model[1].bias))


def test_a_network_that_looks_at_its_own_layers_bakes() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sign, self.fc = BinaryActivation(), nn.Linear(12, 5)
            self.fc.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            x = self.sign(x).view(-1, self.fc.in_features).to(self.fc.weight.dtype)
            layers = [module for module in self.children() if isinstance(module, nn.Linear)]
            return layers[0](input=x) * layers[0].gain

    model = binarize_weights(Looks(), "sign", seed=0, scale=a_layer(0.3), example=torch.zeros(4, 3, 4))
    assert is_on_output(model.fc)
    x = torch.randn(2, 3, 4)
    baked = bake_weights(model)
    assert torch.equal(baked(x), model(x))
    assert [name for name, _ in baked.named_parameters()] == ["fc.weight", "fc.gain", "fc.output_scale.bias"]


def test_layers_that_share_a_bias_share_it_baked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(BinaryActivation(), nn.Linear(6, 6), BinaryActivation(), nn.Linear(6, 6))
    model[3].bias = model[1].bias
    baked: Any = bake_weights(binarize_weights(model, "sign", seed=0))
    assert baked[1].output_scale.bias is baked[3].output_scale.bias
    assert torch.equal(baked(torch.ones(2, 6)), model(torch.ones(2, 6)))


def test_a_bias_that_is_computed_keeps_the_scale_on_the_weight() -> None:
    class Halved(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return bias / 2

    one, other = pair(lambda: nn.Linear(12, 5), "sign")
    for model in (one, other):
        parametrize.register_parametrization(model[1], "bias", Halved())
    assert not is_on_output(other[1])
    x = torch.randn(6, 12, dtype=torch.float64)
    assert torch.equal(other(x), one(x))
    assert torch.equal(bake_weights(other)(x), other(x))


@pytest.mark.parametrize("setting", ["stride", "padding", "dilation"])
def test_a_number_may_stand_for_all_dimensions(setting: str) -> None:
    one, other = pair(lambda: nn.Conv2d(4, 6, 3), "sign")
    for model in (one, other):
        setattr(model[1], setting, 2)
    assert_alike(one, other, torch.randn(2, 4, 9, 9, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolutions_in_mixed_precision(dtype: torch.dtype) -> None:
    model = network("conv2", "bihalf")
    x, y = images(count=4)
    with torch.autocast("cpu", dtype):
        logits = model(x)
        F.cross_entropy(logits.float(), y).backward()
    assert logits.dtype == dtype
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    with Sums() as sums, torch.autocast("cpu", dtype):
        model(x)
    assert [torch.equal(z, z.round()) for z in sums.found] == [False, *[True] * 4]


def test_a_scale_below_zero_is_one_of_the_other_sign() -> None:
    model = binarize_weights(nn.Sequential(BinaryActivation(), nn.Linear(12, 5)), "sign", seed=0, scale=a_layer(-0.3))
    x = torch.randn(6, 12)
    torch.testing.assert_close(bake_weights(model)(x), model(x))
    torch.testing.assert_close(model(x), F.linear(model[0](x), model[1].weight, model[1].bias))


def test_an_output_scale_keeps_the_dtype() -> None:
    shift = nn.Parameter(torch.tensor([1.0, 0]))
    scale = output_scale(torch.tensor([0.5, 2]), shift, torch.ones(2, 3, 1, 1), hook=False)
    z = torch.ones(1, 2, 1, 1)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        y = scale(z.to(dtype))
        assert y.dtype == dtype
        assert y.flatten().tolist() == [1.5, 2]

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mpt_bihalf import METHODS, bake_weights, binarize_weights, create_model, set_progress
from mpt_bihalf.activation_modules import ACTIVATIONS
from mpt_bihalf.activations import ACTIVATION_GRADIENTS, BinaryActivation, EdeActivation
from mpt_bihalf.methods import find_method

# The forward functions of which the estimators are the derivatives, as their papers have them.
SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": lambda x: x.clamp(-1, 1),
    "approx": lambda x: torch.where(x < 0, 2 * x + x**2, 2 * x - x**2).where(x.abs() < 1, x.sign()),
    "ede": lambda x: 10 * torch.tanh(0.1 * x),  # c tanh(t x) at the start: t = 0.1, c = 10
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_the_sign_with_that_of_zero_positive(dtype: torch.dtype, device: torch.device) -> None:
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-7, 3.0, -1e-7], dtype=dtype, device=device)
    out = BinaryActivation()(x)
    assert out.dtype == dtype
    assert out.tolist() == [-1, 1, 1, 1, 1, -1]


@pytest.mark.parametrize("name", SURROGATES)
def test_backward_is_the_derivative_of_the_estimators_function(name: str, device: torch.device) -> None:
    x = torch.linspace(-3, 3, 1201, dtype=torch.float64, device=device).requires_grad_()
    g = torch.randn(1201, dtype=torch.float64, device=device)
    (expected,) = torch.autograd.grad(SURROGATES[name](x), x, g)
    (found,) = torch.autograd.grad(BinaryActivation(name)(x), x, g)
    inside = (x.abs() - 1).abs() > 1e-9  # at the very edge the derivative is a convention
    torch.testing.assert_close(found[inside], expected[inside])


def test_nothing_passes_at_the_edge_and_beyond() -> None:
    x = torch.tensor([-1.0, 1.0, -1.5, 7.0], requires_grad=True)
    for name in ("clip", "approx"):
        (found,) = torch.autograd.grad(BinaryActivation(name)(x).sum(), x)
        assert found.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("t0", [0.1, 1e-3])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.99])
def test_the_error_decay_estimator_follows_its_schedule(t0: float, progress: float) -> None:
    model = torch.nn.Sequential(BinaryActivation(EdeActivation(t0)))
    set_progress(model, progress)
    x = torch.linspace(-2, 2, 101, dtype=torch.float64, requires_grad=True)
    t = t0 * (10 / t0) ** progress
    (found,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(found, max(1 / t, 1) * t * (1 - torch.tanh(t * x.detach()) ** 2))


def test_memory_format_is_kept() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert BinaryActivation()(x).is_contiguous(memory_format=torch.channels_last)


def test_an_estimator_of_ones_own_is_taken_and_an_unknown_name_is_not() -> None:
    x = torch.randn(5, requires_grad=True)
    (found,) = torch.autograd.grad(BinaryActivation(lambda g, x, progress: 3 * g)(x).sum(), x)
    assert found.tolist() == [3] * 5
    with pytest.raises(ValueError, match=r"unknown estimator 'relu'; known: clip, clip-closed, approx, ede, .*rbnn"):
        BinaryActivation("relu")


def test_each_method_has_the_estimator_of_its_papers() -> None:
    names = {estimator: name for name, estimator in {**ACTIVATION_GRADIENTS, **ACTIVATIONS}.items()}
    found = {name: names[find_method(name).activation_gradient] for name in METHODS}
    assert {name for name in found if found[name] == "rbnn"} == {"rbnn", "rbnn-bihalf"}
    assert {name for name in found if found[name] == "approx"} == {"bi-real", "mpt-sign", "mpt-bihalf", "mpt-balanced"}
    assert {name for name in found if found[name] == "ede"} == {"irnet"}


def test_a_step_needs_no_values(device: torch.device) -> None:
    with torch.device("meta"):
        x = torch.randn(2, 3, requires_grad=True)
        for name in ACTIVATION_GRADIENTS:
            BinaryActivation(name)(x).sum().backward()


# Under other hands


def network(activations: str, scale_on: str = "output") -> nn.Module:
    model = create_model("conv2", in_channels=1, image_size=8, width=0.1, activations=activations, seed=0)
    return binarize_weights(model, "mpt-bihalf", seed=0, scale_on=scale_on).eval()


@pytest.mark.parametrize("form", ["trace", "trace of baked", "script of baked", "export of baked"])
@pytest.mark.parametrize("activations", list(ACTIVATION_GRADIENTS))
def test_a_graph_of_a_network_gives_its_very_outputs(activations: str, form: str) -> None:
    # TorchScript takes no scale behind a layer.
    model, x = network(activations, "weight" if "script" in form else "output"), torch.randn(4, 1, 8, 8)
    expected = model(x)
    if "baked" in form:
        model = bake_weights(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        if "export" in form:
            graph: Any = torch.export.export(model, (x,)).module()
        else:
            file = io.BytesIO()
            torch.jit.save(torch.jit.script(model) if "script" in form else torch.jit.trace(model, x), file)
            file.seek(0)
            graph = torch.jit.load(file)
    assert torch.equal(graph(x), expected)


@pytest.mark.parametrize("activations", list(ACTIVATION_GRADIENTS))
def test_functional_gradients_are_those_of_backward(activations: str) -> None:
    model, x, y = network(activations), torch.randn(4, 1, 8, 8), torch.arange(4)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, (x,)), y)

    found, each = grad(loss)(parameters, x, y), vmap(grad(loss), (None, 0, 0))(parameters, x[:, None], y[:, None])
    loss(dict(model.named_parameters()), x, y).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    for name, expected in trained.items():
        torch.testing.assert_close(found[name], expected)
        torch.testing.assert_close(each[name].mean(0), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("estimator", list(ACTIVATION_GRADIENTS))
def test_in_a_graph_signs_and_gradients_are_eagers(estimator: str) -> None:
    torch._dynamo.reset()
    sign, x = BinaryActivation(estimator), torch.linspace(-2, 2, 9)
    sign.progress = 0.25
    found = []
    for one in (sign, torch.compile(sign, backend="aot_eager", fullgraph=True)):
        given = x.clone().requires_grad_()
        out = one(given)
        out.sum().backward()
        found.append((out, given.grad))
    assert all(map(torch.equal, *found))

"""A model whose layers compute by what their weights keep: same function, plain modules, nothing given up."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from mpt_bihalf import (
    METHODS,
    bake_weights,
    binarize_weights,
    binary_layers,
    create_model,
    fix_masks,
    load_ticket,
    save_ticket,
    set_compute,
    sparse,
)
from mpt_bihalf.images_last import are_last

pytestmark = pytest.mark.skipif(not sparse.available(), reason="no compiled loops with AVX2 here")
BINARY = [name for name in METHODS if name != "dense"]


def network(name: str = "conv4", method: str = "mpt-bihalf", rate: float = 0.9, **choices: Any) -> nn.Module:
    activations = choices.pop("activations", "real")
    model = create_model(name, seed=0, width=0.25, image_size=16, activations=activations)
    return binarize_weights(model, method, rate, seed=0, **choices)


def images(count: int = 6, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def smooth(model: nn.Module) -> nn.Module:
    """The model without kinks, beyond which a value that rounds otherwise has another gradient."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.MaxPool2d):
                setattr(module, name, nn.Softplus() if isinstance(child, nn.ReLU) else nn.AvgPool2d(2))
    return model


def passed(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What a model gives, and the gradient of everything that is trained in it."""
    y = model(x)
    model.zero_grad()
    y.pow(2).sum().backward()
    return y.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_near(found: nn.Module, expected: nn.Module, x: Tensor) -> None:
    (y, gradients), (right, theirs) = passed(found, x), passed(expected, x)
    torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-4 * right.abs().max().item())
    assert gradients.keys() == theirs.keys() and gradients
    for name, g in theirs.items():
        assert (gradients[name] - g).norm() <= 1e-3 * g.norm() + 1e-6, name


@pytest.mark.parametrize("method", BINARY)
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.98])
def test_every_method_is_the_same_function(method: str, rate: float) -> None:
    dense = smooth(network(method=method, rate=rate, allow_empty=True))
    ours = set_compute(deepcopy(dense), "sparse")
    assert_near(ours, dense, images())


@pytest.mark.parametrize("scope", ["layer", "filter", "global"])
@pytest.mark.parametrize("name", ["conv6", "resnet18", "resnet20", "vgg_small"])
def test_networks_scopes_and_skipped_layers(name: str, scope: str) -> None:
    dense = smooth(network(name, scope=scope, skip=() if name == "conv6" else ("first", "last", "downsample")))
    assert_near(set_compute(deepcopy(dense), "sparse"), dense, images())


@pytest.mark.parametrize("scale_on", ["weight", "output"])
def test_binary_activations(scale_on: str) -> None:
    dense = network(activations="clip", rate=0.5, scale_on=scale_on).double().float()
    ours = set_compute(deepcopy(dense), "sparse").eval()
    with torch.no_grad():
        y, right = ours(images()), dense.eval()(images())
    if scale_on == "output":  # else the dense sums have rounding noise, where these are whole numbers
        assert (y.argmax(1) == right.argmax(1)).all()
    sums = []
    layers = [module for module in ours.modules() if isinstance(module, nn.Conv2d)]
    part = next(part for _, part, _ in list(binary_layers(ours))[1:])
    alpha = part.scaled_binary(layers[1].parametrizations.weight.original)[1]  # type: ignore[union-attr, index]
    layers[1].register_forward_hook(lambda layer, inputs, out: sums.append(out / alpha.view(1, -1, 1, 1)))
    with torch.no_grad():
        ours(images())
    torch.testing.assert_close(sums[0], sums[0].round(), rtol=1e-6, atol=0)


def test_the_model_stays_a_plain_one_and_can_go_back() -> None:
    dense = network("resnet20", skip=("first", "last"))
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    expected = deepcopy(dense)(images())
    ours = set_compute(dense, "sparse")
    assert ours is dense
    assert list(ours.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    copy = deepcopy(ours)
    assert torch.equal(copy.eval()(images()), ours.eval()(images()))
    fresh = set_compute(network("resnet20", skip=("first", "last")), "sparse")
    fresh.load_state_dict(ours.state_dict())
    assert torch.equal(fresh.eval()(images()), ours(images()))
    set_compute(ours, "dense").load_state_dict(before)
    assert torch.equal(ours.train()(images()), expected)
    assert all(
        type(module).__module__.startswith(("torch", "mpt_bihalf.models"))
        for module in ours.modules()
        if not parametrize.is_parametrized(module) and "parametr" not in type(module).__module__
    )


def test_what_is_baked_of_it_is_torchs_own(tmp_path: Path) -> None:
    ours = set_compute(network("resnet20", skip=("first", "last")), "sparse").eval()
    baked = bake_weights(ours)
    assert {type(module).__module__.split(".")[0] for module in baked.modules()} <= {"torch", "mpt_bihalf"}
    assert not any("images_last" in type(m).__module__ or "compute" in type(m).__module__ for m in baked.modules())
    torch.testing.assert_close(baked(images()), ours(images()), rtol=1e-4, atol=1e-4)
    pickle.loads(pickle.dumps(baked))
    save_ticket(ours, tmp_path / "ticket.safetensors")
    plain = load_ticket(tmp_path / "ticket.safetensors", into=create_model("resnet20", width=0.25, image_size=16))
    torch.testing.assert_close(plain.eval()(images()), ours(images()), rtol=1e-4, atol=1e-4)


class Own(nn.Module):
    """Layers of many kinds, some of which do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.fits = nn.Conv2d(3, 8, 3, padding="same")
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.wide = nn.Conv2d(8, 8, 5, padding=2)
        self.reflected = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.line = nn.Conv1d(8, 8, 3)
        self.linear = nn.Linear(8, 8)
        self.unused_call = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.strided(self.fits(x)).relu_())
        x = self.reflected(self.wide(self.dilated(self.grouped(x).relu())))
        x = self.line(x.flatten(2)).transpose(1, 2)
        return nn.functional.linear(self.linear(x), self.unused_call.weight, self.unused_call.bias)


def test_layers_that_do_not_fit_go_the_dense_way() -> None:
    torch.manual_seed(0)
    dense = binarize_weights(Own(), "mpt-bihalf", 0.5, seed=0)
    ours = set_compute(deepcopy(dense), "sparse")
    assert_near(ours, dense, images())
    single = ours.fits(images()[0])  # type: ignore[operator]
    torch.testing.assert_close(single, dense.fits(images()[0]))  # type: ignore[operator]
    with pytest.raises(RuntimeError):
        ours.fits(torch.randn(2, 4, 8, 8))  # type: ignore[operator]


def test_a_bias_of_another_dtype_is_an_error_as_with_torch() -> None:
    for layer, x in ((nn.Conv2d(3, 4, 3), images()), (nn.Linear(3, 4), torch.randn(5, 3))):
        ours = set_compute(binarize_weights(layer, "sign", seed=0), "sparse")
        assert layer.bias is not None
        layer.bias.data = layer.bias.data.double()
        with pytest.raises(RuntimeError, match=r"same|dtype|type"):
            ours(x)


def test_shared_weights_checkpointing_and_a_fixed_mask() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    model[2].weight = model[0].weight
    dense = binarize_weights(model, "mpt-bihalf", 0.5, seed=0)
    ours = set_compute(deepcopy(dense), "sparse")
    x = torch.randn(7, 12)
    assert_near(ours, dense, x)
    again = deepcopy(ours)
    _, gradients = passed(ours, x)
    checkpoint(again, x, use_reentrant=False).pow(2).sum().backward()
    for name, p in again.named_parameters():
        assert (p.grad is None) == (name not in gradients)
        assert p.grad is None or torch.equal(p.grad, gradients[name])
    fixed, masks = smooth(network()), {}
    for name, _part, latent in binary_layers(fixed):
        masks[name] = torch.rand(latent.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    fix_masks(fixed, masks)
    assert_near(set_compute(deepcopy(fixed), "sparse"), fixed, images())


def test_graphs_transforms_and_other_dtypes_go_torchs_way() -> None:
    torch._dynamo.reset()
    dense = network().eval()
    ours = set_compute(deepcopy(dense), "sparse").eval()
    x = images()
    with torch.no_grad():
        right = dense(x)
        assert torch.equal(torch.jit.trace(ours, x, check_trace=False)(x), right)
        assert torch.equal(torch.compile(ours, backend="eager")(x), right)
        assert torch.equal(torch.func.functional_call(ours, dict(ours.named_parameters()), x), ours(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ours(x), dense(x))
    assert torch.equal(deepcopy(ours).double()(x.double()), deepcopy(dense).double()(x.double()))
    assert ours.to("meta")(x.to("meta")).is_meta
    assert isinstance(fx.symbolic_trace(bake_weights(dense)), fx.GraphModule)


def test_transforms_and_batched_gradients_are_those_of_the_dense_way() -> None:
    dense = binarize_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), "sign", seed=0).eval()
    ours, x = set_compute(deepcopy(dense), "sparse").eval(), images(5, 8)
    scales = torch.randn(3, 1, 1)

    def mapped(model: nn.Module) -> Tensor:
        return torch.func.vmap(lambda scale: (model(x) * scale).sum())(scales)

    torch.testing.assert_close(mapped(ours), mapped(dense), rtol=1e-4, atol=1e-3)

    def batched(model: nn.Module) -> Tensor:
        given = x.clone().requires_grad_()
        y = model(given)
        several = torch.randn(4, *y.shape, generator=torch.Generator().manual_seed(0))
        return torch.autograd.grad(y, given, several, is_grads_batched=True)[0]

    torch.testing.assert_close(batched(ours), batched(dense), rtol=1e-4, atol=1e-4)


def test_what_is_binarized_after_the_call_can_be_sparse_too() -> None:
    model = create_model("conv2", seed=0, width=0.25, image_size=16)
    with pytest.raises(ValueError, match=r"^no layer can compute sparsely: of a binarized model Linear, and Conv2d"):
        set_compute(model, "sparse")
    binarize_weights(model[0], "sign", seed=0)  # type: ignore[index]
    set_compute(model, "sparse")
    binarize_weights(model[2], "sign", seed=0)  # type: ignore[index]
    set_compute(model, "sparse")
    assert [part.compute for _, part, _ in binary_layers(model)] == ["sparse"] * 2
    assert are_last(model[2](torch.randn(4, 16, 8, 8)))  # type: ignore[index, operator]
    for layer in (nn.Conv2d(4, 4, 5), nn.Conv2d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 3)):
        with pytest.raises(ValueError, match=r"^no layer can compute sparsely"):
            set_compute(binarize_weights(nn.Sequential(layer), "sign", seed=0), "sparse")


def test_a_linear_layer_of_more_dimensions_can_be_viewed_in_others() -> None:
    layer = set_compute(binarize_weights(nn.Linear(6, 4), "sign", seed=0), "sparse")
    assert layer(torch.randn(2, 3, 6)).view(2, 12).shape == (2, 12)


def test_activations_keep_the_layout_through_the_network() -> None:
    ours = set_compute(network("resnet18"), "sparse")
    seen: dict[str, bool] = {}
    for name, module in ours.named_modules():
        if "parametrizations" not in name and (not list(module.children()) or isinstance(module, nn.Conv2d)):
            module.register_forward_hook(
                lambda module, inputs, out, name=name: seen.__setitem__(name, out.dim() != 4 or are_last(out))
            )
    passed(ours, images())
    assert seen and all(seen.values()), [name for name, last in seen.items() if not last]


def test_what_cannot_be_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    with pytest.raises(ValueError, match=r"^unknown compute 'fast'; known: dense, sparse$"):
        set_compute(model, "fast")
    monkeypatch.setattr(sparse.kernels, "compiled", lambda: None)
    with pytest.raises(ValueError, match=r"^compute sparse needs a processor with AVX2 and the compiled loops"):
        set_compute(model, "sparse")
    assert torch.isfinite(set_compute(model, "dense")(images())).all()


def test_without_the_loops_a_model_that_had_them_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = network()
    ours = set_compute(deepcopy(dense), "sparse")
    monkeypatch.setattr(sparse.kernels, "compiled", lambda: None)
    assert torch.equal(ours(images()), dense(images()))

"""Scales behind a layer: trained factors (Gamma, XNOR-Net++), and the mean magnitude of the input (K, XNOR-Net)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import (
    OUTPUT_SCALES,
    BinaryActivation,
    Gamma,
    InputScaled,
    ScaledOutput,
    bake_weights,
    binarize_weights,
    create_model,
    learned_scales,
    load_ticket,
    save_ticket,
)
from mpt_bihalf.models.scaled import scale_outputs
from mpt_bihalf.parametrization import binary_layers
from mpt_bihalf.real_valued import real_matrices
from mpt_bihalf.training import Run
from mpt_bihalf.training.build import build_network, build_optimizer
from mpt_bihalf.training.schedule import learning_rate, start_step
from tests.reference import one_line_error

# Of 16 layers of ResNet-18 for images of 224 x 224.
COUNTS = {"gamma-1": 3_840, "gamma-2": 1_505_280, "gamma-3": 20_500, "gamma-4": 4_680}


def counted(model: nn.Module) -> int:
    return sum(scale.numel() for scale in learned_scales(model))


@pytest.mark.parametrize("name", OUTPUT_SCALES)
def test_counts_of_parameters(name: str) -> None:
    settings: Any = {"image_size": 224, "activations": "clip", "block": "norm-first", "output_scale": name}
    with torch.device("meta"):
        model = create_model("resnet18", 1000, **settings)
        plain = create_model("resnet18", 1000, **settings | {"output_scale": "none"})
    assert sum(isinstance(module, Gamma) for module in model.modules()) == 16
    assert counted(model) == COUNTS[name]
    of_all = [sum(p.numel() for p in each.parameters()) for each in (model, plain)]
    assert of_all[0] - of_all[1] == COUNTS[name]


def test_count_of_resnet34() -> None:
    with torch.device("meta"):
        model = create_model("resnet34", 1000, image_size=224, activations="clip", output_scale="gamma-4")
    assert counted(model) == 9_092


def test_the_fourth_case_by_example() -> None:
    gamma = Gamma(4, 2, (2, 2)).double()
    with torch.no_grad():
        for factor, values in zip(gamma.parameters(), ((1, 2), (1, 0.5), (2, 1)), strict=True):
            factor.copy_(torch.tensor(values))
    y = gamma(torch.arange(1.0, 9, dtype=torch.float64).view(1, 2, 2, 2))
    assert y.flatten().tolist() == [2, 2, 3, 2, 20, 12, 14, 8]
    y.sum().backward()
    assert [factor.grad.tolist() for factor in gamma.parameters()] == [[9, 27], [36, 54], [19.5, 24]]  # type: ignore[union-attr]


@pytest.mark.parametrize("case", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 4), ()])
def test_each_case_is_its_product(case: int, size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(case)
    gamma = Gamma(case, 6, size).double()
    z = torch.randn(2, 6, *size, dtype=torch.float64, generator=generator)
    assert torch.equal(gamma(z), z)  # it begins at 1
    with torch.no_grad():
        for factor in gamma.parameters():
            factor.copy_(torch.randn(factor.shape, generator=generator))
    a, *rest = [factor.detach() for factor in gamma.parameters()]
    expected = torch.empty(6, *size, dtype=torch.float64)
    for place in torch.cartesian_prod(*[torch.arange(n) for n in (6, *size)]).view(-1, 1 + len(size)).tolist():
        o, *at = place
        value = a[tuple(place)] if a.dim() > 1 else a[o]
        if case == 3 and size:
            value = value * rest[0][tuple(at)]
        if case == 4:
            for factor, i in zip(rest, at, strict=True):
                value = value * factor[i]
        expected[tuple(place)] = value
    assert torch.allclose(gamma(z), expected * z, rtol=1e-14)
    assert len(rest) == ({1: 0, 2: 0, 3: 1, 4: len(size)}[case] if size else 0)


def test_a_scale_is_for_images_of_its_size() -> None:
    for case in (2, 3, 4):
        with one_line_error(f"a layer gives 3 x 1 x 5 numbers an image, and its scale gamma-{case} is for 3 x 4 x 5"):
            Gamma(case, 3, (4, 5))(torch.ones(1, 3, 1, 5))
    assert Gamma(1, 3, (4, 5))(torch.ones(1, 3, 7, 7)).shape == (1, 3, 7, 7)
    with one_line_error("a layer gives 1 x 4 x 5 numbers"):
        Gamma(1, 3, (4, 5))(torch.ones(1, 1, 4, 5))
    model = create_model("conv2", activations="clip", output_scale="gamma-4")
    with one_line_error("numbers an image, and its scale gamma-4 is for 64 x 32 x 32"):
        model(torch.ones(2, 3, 64, 64))


def test_what_cannot_be_is_refused() -> None:
    with one_line_error("case must be 1, 2, 3 or 4, not 5"):
        Gamma(5, 3)
    with one_line_error("has no number"):
        Gamma(2, 3, (0, 4))
    with one_line_error("a layer under an input scale has no bias"):
        InputScaled(BinaryActivation(), nn.Conv2d(2, 3, 3))
    with one_line_error("unknown output_scale 'x'; known: gamma-1"):
        scale_outputs(nn.Sequential(BinaryActivation(), nn.Linear(2, 2)), "x", torch.ones(1, 2))
    with one_line_error("no binary activation feeds a layer"):
        scale_outputs(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "gamma-1", torch.ones(1, 2))
    with one_line_error("an input scale is for padding by zeros, not 'reflect'"):
        InputScaled(BinaryActivation(), nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=False))
    for fields, why in (
        ({"output_scale": "gamma-4"}, "output_scale gamma-4 is for binary activations"),
        ({"input_scale": True}, "input_scale is for binary activations"),
        ({"output_scale": "gamma-5", "activations": "clip"}, "unknown output_scale 'gamma-5'; known: none, gamma-1"),
        (
            {"input_scale": True, "activations": "clip", "model": "resnet20"},
            "resnet20 has no place for input_scale; conv2",
        ),
    ):
        with one_line_error(why):
            Run(**fields)
        if "method" not in fields:
            told: dict[str, Any] = {"model": "conv2", **fields}
            with one_line_error(why):
                create_model(told.pop("model"), **told)


def test_a_network_s_own_scale_takes_the_place_of_what_a_method_would_learn() -> None:
    run = Run(method="xnor++", activations="binary", block="norm-first", model="resnet18", width=0.125)
    assert (run.output_scale, run.scale) == ("gamma-4", "learned")
    model = build_network(run, 10, 3, 32)
    parts = {name: module.extra_repr() for name, module in model.named_modules() if hasattr(module, "alpha")}
    assert len(parts) == 16 and not any(name.endswith("alpha") for name, _ in model.named_parameters())
    kept = build_network(Run(method="sign", activations="binary", output_scale="gamma-1", model="resnet18"), 10, 3, 32)
    assert kept.get_submodule("layer1.0.conv1.layer").weight.abs().max() < 1  # type: ignore[union-attr, operator]
    alone = Run(method="xnor++", activations="binary", output_scale="none", model="resnet18")
    assert sum(name.endswith("alpha") for name, _ in build_network(alone, 10, 3, 32).named_parameters()) == 16
    assert Run(method="xnor++").output_scale == "none"  # with real activations it is case 1
    assert Run(method="xnor++", activations="binary", output_scale="gamma-2").output_scale == "gamma-2"


def test_scales_have_no_weight_decay() -> None:
    for fields in (
        {"method": "xnor++", "activations": "binary", "block": "norm-first", "optimizer": "adam"},
        {"method": "bnn+"},
        {"method": "bop", "scale": "learned"},
    ):
        run = Run(model="conv2", width=0.125, weight_decay=0.1, **fields)  # type: ignore[arg-type]
        model = build_network(run, 10, 3, 32)
        groups = build_optimizer(run, model).param_groups  # type: ignore[union-attr]
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        rates = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
        scales = {id(scale) for scale in learned_scales(model)}
        assert scales and decays.keys() == {id(p) for p in model.parameters() if p.requires_grad}
        assert all(decay == (0.0 if of in scales else 0.1) for of, decay in decays.items())
        own = {id(part.alpha): 2 / weight[0].numel() for _, part, weight in binary_layers(model)}
        adaptive = run.optimizer == "adam"
        assert rates == {of: 1.0 if adaptive else own.get(of, 1.0) for of in rates}
        optimizer = build_optimizer(run, model)
        start_step(optimizer, run, 0, 5, 10)
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            assert group["lr"] == pytest.approx(learning_rate(run, 0, 5, 10) * group.get("lr_scale", 1.0))


def windows(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """K by hand: the mean of each window of the mean magnitudes, zeros round them."""
    stride: Any = layer.stride
    patches = F.unfold(x.abs().mean(1, keepdim=True), layer.kernel_size, layer.dilation, layer.padding, stride)  # type: ignore[arg-type]
    return patches.mean(1)


@pytest.mark.parametrize(
    "geometry",
    [{}, {"padding": 1}, {"padding": 2, "stride": 2}, {"padding": (0, 2), "dilation": 2}, {"stride": (1, 3)}],
)
def test_the_input_scale_is_the_mean_of_each_window(geometry: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Conv2d(3, 4, (3, 2), bias=False, **geometry).double()
    scaled = InputScaled(BinaryActivation(), layer)
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    found, z = scaled.input_scale(x.detach()), layer(BinaryActivation()(x))
    assert found.shape == (2, 1, *z.shape[2:])
    assert torch.allclose(found.flatten(1), windows(x.detach(), layer), rtol=1e-13)
    assert torch.allclose(scaled(x), found * z)
    (of_x,) = torch.autograd.grad(scaled(x).square().sum(), x)
    (constant,) = torch.autograd.grad((found * layer(BinaryActivation()(x))).square().sum(), x)
    assert torch.equal(of_x, constant)


def test_the_input_scale_by_example() -> None:
    scaled = InputScaled(BinaryActivation(), nn.Conv2d(2, 1, 3, padding=1, bias=False).double())
    of_ones = scaled.input_scale(-torch.ones(1, 2, 4, 4, dtype=torch.float64))[0, 0]
    assert torch.allclose(of_ones[0, 0], torch.tensor(4 / 9).double()) and torch.allclose(of_ones[3], of_ones[0])
    assert torch.allclose(of_ones[1:3, 0], torch.tensor(2 / 3).double())
    assert torch.allclose(of_ones[1:3, 1:3], torch.tensor(1.0).double())
    rows = InputScaled(BinaryActivation(), nn.Linear(4, 3, bias=False))
    assert rows.input_scale(torch.tensor([[1.0, -2, 3, 0]])).tolist() == [[1.5]]
    assert torch.equal(rows(torch.tensor([[1.0, -2, 3, 0]])), 1.5 * rows.layer(torch.tensor([[1.0, -1, 1, 1]])))


@pytest.mark.parametrize("block", ["", "norm-first"])
@pytest.mark.parametrize("network", ["conv2", "resnet18"])
def test_what_is_before_an_input_scale_is_that_without(network: str, block: str) -> None:
    """With all inputs of magnitude 1 but for the padding K is 1, so a network of 1x1 images tells its places."""
    settings: Any = {"width": 0.125, "activations": "clip", "block": block, "seed": 0}
    plain, scaled = create_model(network, **settings), create_model(network, input_scale=True, **settings)
    inner = {name: module for name, module in scaled.named_modules() if isinstance(module, InputScaled)}
    signs = [module for module in plain.modules() if isinstance(module, BinaryActivation)]
    assert len(inner) == len(signs) and len([m for m in scaled.modules() if isinstance(m, BinaryActivation)]) == len(
        signs
    )
    for module in inner.values():  # let K be 1
        module.input_scale = lambda x: torch.ones(())  # type: ignore[method-assign]
    named = {name.replace(".layer.", "."): value for name, value in scaled.state_dict().items()}
    assert named.keys() == plain.state_dict().keys()
    assert all(torch.equal(named[name], value) for name, value in plain.state_dict().items())
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaled(x), plain(x))


@pytest.mark.parametrize("method", ["sign", "bihalf", "mpt-sign", "mpt-bihalf", "magnitude-bihalf", "xnor++"])
def test_any_binary_weight_goes_with_them_into_a_ticket_and_out(method: str, tmp_path: Any) -> None:
    arch: Any = {"name": "resnet18", "width": 0.125, "activations": "clip", "block": "norm-first"}
    arch |= {"output_scale": "gamma-3", "input_scale": True}
    model = create_model(**arch, seed=0)
    binarize_weights(model, method, seed=0, skip=("first", "last", "downsample"), example=torch.empty(1, 3, 32, 32))
    with torch.no_grad():
        for scale in learned_scales(model):
            scale.uniform_(0.5, 1.5)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.eval()
    save_ticket(model, tmp_path / "ticket", architecture=arch)
    loaded = load_ticket(tmp_path / "ticket").eval()
    assert torch.equal(loaded(x), model(x)) and torch.equal(bake_weights(model)(x), model(x))
    with one_line_error("numbers an image, and its scale gamma-3 is for"):
        loaded(torch.ones(1, 3, 64, 64))
    # Whole numbers before each scale.
    found: list[Tensor] = []
    for module in loaded.modules():
        if isinstance(module, ScaledOutput):
            module.layer.register_forward_hook(lambda layer, given, z: found.append(z / layer.output_scale.alpha))  # type: ignore[union-attr]
    loaded(x)
    assert len(found) == 16 and all(torch.allclose(z, z.round(), atol=1e-3) for z in found)


@pytest.mark.parametrize("network", ["vgg16", "vgg_small", "resnet20", "shufflenet", "inception_v3", "wide_resnet50"])
def test_any_network_takes_output_scales(network: str) -> None:
    """Which begin at 1: what the network gives is what it gave."""
    settings: Any = {"width": 0.0625, "activations": "clip", "seed": 0, "image_size": 64}
    plain, scaled = create_model(network, **settings), create_model(network, output_scale="gamma-4", **settings)
    places = [module for module in scaled.modules() if isinstance(module, ScaledOutput)]
    assert len(places) >= 3 and counted(scaled) == sum(p.numel() for m in places for p in m.scale.parameters())
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaled(x), plain(x))
    assert Run(method="xnor++", model=network, activations="binary").output_scale == "gamma-4"


def test_a_bias_comes_behind_the_scale() -> None:
    conv = nn.Conv2d(2, 3, 3)
    bias = conv.bias
    with torch.no_grad():
        conv.bias.copy_(torch.tensor([1.0, -2, 3]))  # type: ignore[union-attr]
    scaled = ScaledOutput(conv, Gamma(1, 3, (4, 4)))
    with torch.no_grad():
        for factor in scaled.scale.parameters():
            factor.fill_(2)
    x = torch.randn(2, 2, 6, 6)
    assert scaled.bias is bias and conv.bias is None
    assert torch.allclose(scaled(x), 2 * F.conv2d(x, conv.weight) + bias.view(-1, 1, 1))  # type: ignore[union-attr]
    model = nn.Sequential(BinaryActivation(), ScaledOutput(nn.Conv2d(2, 3, 3), Gamma(1, 3, (4, 4))))
    binarize_weights(model, "mpt-sign", seed=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"1.layer.parametrizations.weight.0.scores", "1.scale.a"}  # biases are frozen with the weights


def test_that_scales_are_real_valued_is_no_news() -> None:
    arch: Any = {"activations": "clip", "block": "norm-first", "output_scale": "gamma-2", "width": 0.25}
    model = create_model("conv2", seed=0, **arch)
    assert counted(model) > 0.05 * sum(p.numel() for p in model.parameters()) and not real_matrices(model)


def test_a_scale_behind_a_layer_begins_where_others_do() -> None:
    """The weight has Kaiming's, and Gamma is 1: a signal of the size that it has under the method sign."""
    of = {}
    for method in ("sign", "xnor++"):
        run = Run(method=method, activations="clip", block="norm-first", model="resnet18", width=0.125)
        model, x = build_network(run, 10, 3, 32), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        of[method] = model(x)
    assert torch.allclose(of["sign"], of["xnor++"], atol=1e-5)

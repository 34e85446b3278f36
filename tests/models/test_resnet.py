from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from mpt_bihalf import create_model
from mpt_bihalf.parametrization import binary_layers
from mpt_bihalf.training import Run
from mpt_bihalf.training.build import build_network

TORCHVISION = {"resnet18": "resnet18", "resnet34": "resnet34", "wide_resnet50": "wide_resnet50_2"}


@pytest.mark.parametrize("name", list(TORCHVISION))
def test_network_is_torchvisions(name: str) -> None:
    ours = create_model(name, 1000, image_size=224, seed=0).eval()
    theirs = getattr(torchvision.models, TORCHVISION[name])().eval()
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 96, 80)
    torch.testing.assert_close(ours(images), theirs(images))


def test_wide_resnet34_has_the_published_number_of_parameters() -> None:
    """Diffenderfer & Kailkhura 2021: 48.2 million, 19.3 million with 60 % pruned."""
    with torch.device("meta"):
        model = create_model("wide_resnet34", 1000, image_size=224)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(48.2, abs=0.1)
    assert 0.4 * count / 1e6 == pytest.approx(19.3, abs=0.05)
    widths = [model.get_submodule(f"layer{stage}.0.conv1").weight.shape[0] for stage in (1, 2, 3, 4)]
    assert widths == [64, 192, 384, 768]


@pytest.mark.parametrize(("size", "maps"), [(16, 16), (32, 32), (64, 64), (65, 17), (224, 56)])
@pytest.mark.parametrize("activations", ["real", "clip"])
def test_only_small_images_are_left_as_large_as_they_are(size: int, maps: int, activations: str) -> None:
    for name in ("resnet18", "wide_resnet50"):
        model = create_model(name, 5, image_size=size, seed=0, width=0.0625, activations=activations)
        shapes = []
        for stage in (1, 2, 3, 4):
            layer = model.get_submodule(f"layer{stage}")
            layer.register_forward_hook(lambda _, inputs, out: shapes.append(out.shape[-1]))
        assert model(torch.randn(2, 3, size, size)).shape == (2, 5)
        assert shapes == [maps, -(-maps // 2), -(-maps // 4), -(-maps // 8)]


@pytest.mark.parametrize(("size", "pooled"), [(32, False), (224, True)])
def test_shortcuts_of_binary_networks_pool_large_images(size: int, pooled: bool) -> None:
    with torch.device("meta"):
        model = create_model("resnet18", image_size=size, activations="approx")
        bottleneck = create_model("wide_resnet50", image_size=size, activations="approx")
    pool = [nn.AvgPool2d] if pooled else []
    strides = {(1, 1)} if pooled else {(2, 2)}
    for network in (model, bottleneck):
        for stage in (2, 3, 4):
            shortcut = network.get_submodule(f"layer{stage}.0.downsample")
            assert [type(module) for module in shortcut] == [*pool, nn.Conv2d, nn.BatchNorm2d]
            assert {module.stride for module in shortcut if isinstance(module, nn.Conv2d)} == strides
        assert isinstance(network.get_submodule("layer2.1.downsample"), nn.Identity)
    assert [type(module) for module in bottleneck.get_submodule("layer1.0.downsample")] == [nn.Conv2d, nn.BatchNorm2d]


def test_a_narrow_shortcut_picks_its_pixels_before_the_convolution() -> None:
    model, usual = (create_model("resnet18", image_size=32, seed=0, width=width).eval() for width in (0.0625, 1))
    assert model.state_dict().keys() == usual.state_dict().keys()
    shortcut = model.get_submodule("layer2.0.downsample")
    layer = shortcut.get_submodule("0")
    assert (layer.in_channels, layer.stride) == (4, (1, 1))
    x = torch.randn(2, 4, 9, 8).to(memory_format=torch.channels_last)
    expected = F.conv2d(x[:, :, ::2, ::2], layer.weight) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(shortcut(x), expected)


def test_pooled_shortcuts_stay_real_valued() -> None:
    with torch.device("meta"):
        model = build_network(Run(model="resnet18", activations="binary"), 10, 3, 224)
    binarized = [name for name, *_ in binary_layers(model)]
    assert len(binarized) == 16 and not [name for name in binarized if "downsample" in name]


def halves(block: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What the block's convolutions give of signs, PReLU and batch norm written out."""
    outs = []
    for number, stride in ((1, block.conv1.stride), (2, 1)):
        layer, (slope, norm) = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
        out = F.conv2d(torch.where(x < 0, -1.0, 1.0), layer.weight, stride=stride, padding=1)
        out = torch.where(out > 0, out, slope.weight[:, None, None] * out)
        mean, var = out.mean((0, 2, 3), keepdim=True), out.var((0, 2, 3), keepdim=True, correction=0)
        shortcut = block.downsample(x) if number == 1 else x
        x = (out - mean) / (var + norm.eps).sqrt() + shortcut
        outs.append(x)
    return outs


@pytest.mark.parametrize("block", ["layer1.0", "layer2.0"])
def test_binary_basic_block_has_a_shortcut_round_each_convolution(block: str) -> None:
    model = create_model("resnet18", image_size=32, seed=0, width=0.125, activations="approx")
    module = model.get_submodule(block)
    assert [layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.PReLU)] == [
        module.bn1[1].num_features,
        module.bn2[1].num_features,
    ]
    x = torch.randn(4, 8, 8, 8)
    torch.testing.assert_close(module(x), halves(module, x)[1], rtol=1e-4, atol=1e-4)


def test_binary_bottleneck_has_one_shortcut() -> None:
    model = create_model("wide_resnet50", image_size=32, seed=0, width=0.125, activations="approx")
    module = model.get_submodule("layer2.0")
    x = torch.randn(4, 32, 8, 8)
    out = x
    for number in (1, 2, 3):
        layer = getattr(module, f"conv{number}")
        out = F.conv2d(torch.where(out < 0, -1.0, 1.0), layer.weight, None, layer.stride, layer.padding)
        out = getattr(module, f"bn{number}")(out)
    torch.testing.assert_close(module(x), out + module.downsample(x))

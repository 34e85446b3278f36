from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from mpt_bihalf import create_model
from mpt_bihalf.activations import BinaryActivation


def test_vgg16_has_torchvisions_features() -> None:
    ours = create_model("vgg16", 10, seed=0).eval()
    theirs = torchvision.models.vgg16_bn(init_weights=False).eval()
    ours.features.load_state_dict(theirs.features.state_dict())
    images = torch.randn(2, 3, 32, 32)
    features = theirs.features(images)
    torch.testing.assert_close(ours.features(images), features)
    assert features.shape == (2, 512, 1, 1)
    torch.testing.assert_close(ours(images), ours.classifier(features.flatten(1)))


def test_vgg16_averages_the_map_of_larger_images() -> None:
    model = create_model("vgg16", 10, image_size=96, seed=0, width=0.125).eval()
    images = torch.randn(2, 3, 96, 96)
    assert model.classifier.in_features == 64
    torch.testing.assert_close(model(images), model.classifier(model.features(images).mean((2, 3))))


@pytest.mark.parametrize(("size", "units"), [(32, 512 * 16), (8, 512), ((16, 24), 512 * 6), (4, 512)])
def test_vgg_small_has_six_convolutions_and_one_fully_connected_layer(size: int | tuple[int, int], units: int) -> None:
    with torch.device("meta"):
        model = create_model("vgg_small", 10, image_size=size)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [128, 128, 256, 256, 512, 512]
    assert all(layer.kernel_size == (3, 3) and layer.bias is None for layer in convolutions)
    assert model.classifier.weight.shape == (10, units)


def test_vgg_small_has_the_weights_of_its_layers() -> None:
    widths = [3, 128, 128, 256, 256, 512, 512]
    with torch.device("meta"):
        weights = [p for p in create_model("vgg_small").parameters() if p.dim() > 1]
    assert sum(p.numel() for p in weights) == sum(9 * a * b for a, b in pairwise(widths)) + 8192 * 10


@pytest.mark.parametrize("name", ["vgg_small", "vgg16"])
def test_pooling_stands_before_batch_norm_where_a_sign_follows(name: str) -> None:
    with torch.device("meta"):
        binary = list(create_model(name, activations="clip").features)
        real = list(create_model(name).features)
    for first, second in pairwise(binary):
        if isinstance(first, nn.MaxPool2d):
            assert isinstance(second, nn.BatchNorm2d)
        if isinstance(first, nn.BatchNorm2d):
            assert isinstance(second, BinaryActivation)
    for first, second in pairwise(real):
        if isinstance(second, nn.MaxPool2d):
            assert isinstance(first, nn.ReLU)
    pools = 3 if name == "vgg_small" else 5
    assert [sum(isinstance(layer, nn.MaxPool2d) for layer in layers) for layers in (binary, real)] == [pools, pools]


def test_digits_leave_out_poolings_of_a_single_pixel() -> None:
    with torch.device("meta"):
        model = create_model("vgg16", 10, 1, 8)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in model.modules()) == 3

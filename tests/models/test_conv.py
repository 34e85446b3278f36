from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import nn

from mpt_bihalf import create_model
from tests.reference import one_line_error

WEIGHTS = {"conv2": 4_300_992, "conv4": 2_425_024, "conv6": 2_261_184, "conv8": 5_275_840}


def layers_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_network_has_the_published_number_of_weights(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == WEIGHTS[name]


@pytest.mark.parametrize("depth", [2, 4, 6, 8])
def test_network_is_pairs_of_convolutions_then_three_fully_connected(depth: int) -> None:
    with torch.device("meta"):
        model = create_model(f"conv{depth}", num_classes=7, in_channels=2)
    convolutions, linears = layers_of(model)[:depth], layers_of(model)[depth:]
    assert [c.out_channels for c in convolutions] == [w for w in (64, 128, 256, 512)[: depth // 2] for _ in range(2)]
    assert all(c.kernel_size == (3, 3) and c.padding == (1, 1) and c.stride == (1, 1) for c in convolutions)
    assert convolutions[0].in_channels == 2
    assert [linear.out_features for linear in linears] == [256, 256, 7]
    assert all(layer.bias is None for layer in layers_of(model))
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(nn.MaxPool2d) == depth // 2 and kinds.count(nn.ReLU) == depth + 2


@pytest.mark.parametrize("name", list(WEIGHTS))
@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 3, 100), (16, 1, 10), ((16, 48), 4, 3)])
def test_network_maps_images_to_logits(
    name: str, size: int | tuple[int, int], channels: int, classes: int, device: torch.device
) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    model = create_model(name, classes, channels, size, seed=0).to(device)
    assert model(torch.zeros(2, channels, height, width, device=device)).shape == (2, classes)


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_weights_are_kaiming_normal_draws_of_the_seed(name: str) -> None:
    first, again, other = (create_model(name, image_size=16, seed=seed) for seed in (1, 1, 2))
    for layer, same, different in zip(*map(layers_of, (first, again, other)), strict=True):
        assert torch.equal(layer.weight, same.weight) and not torch.equal(layer.weight, different.weight)
        std = sqrt(2 / layer.weight[0].numel())
        assert layer.weight.std().item() == pytest.approx(std, rel=5 / sqrt(2 * layer.weight.numel()))


def test_a_seed_leaves_the_global_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    create_model("conv2", image_size=8, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_weights_come_from_the_global_generator() -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(create_model("conv2", image_size=8))
    first, again, other = (layers_of(model)[0].weight for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "choices", "says"),
    [
        ("conv3", {}, "unknown model 'conv3'.*conv2"),
        ("conv2", {"image_size": 1}, "1x1"),
        ("conv2", {"image_size": 0}, "0x0"),
        ("conv8", {"image_size": 8}, "multiple of 16, not 8x8"),
        ("conv4", {"image_size": 30}, "multiple of 4, not 30x30"),
        ("conv4", {"image_size": (32, 33)}, "32x33"),
        ("conv2", {"num_classes": 0}, "num_classes.*0"),
        ("conv2", {"in_channels": 0}, "in_channels.*0"),
    ],
)
def test_what_cannot_be_built_is_an_error_of_one_line(name: str, choices: dict, says: str) -> None:
    with one_line_error(says):
        create_model(name, **choices)

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mpt_bihalf import create_model


def test_network_has_the_published_number_of_parameters() -> None:
    """He et al. 2016, table 6: 0.27 million. Written out: convolutions, batch norms, the last layer."""
    with torch.device("meta"):
        model = create_model("resnet20")
    convolutions = 27 * 16 + 9 * (6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == convolutions + norms + 65 * 10
    assert count / 1e6 == pytest.approx(0.27, abs=0.005)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 19


def test_shortcuts_are_pixels_and_zeros() -> None:
    model = create_model("resnet20", seed=0)
    shortcuts = [model.get_submodule(f"layer{stage}.0.downsample") for stage in (1, 2, 3)]
    assert not [p for shortcut in shortcuts for p in shortcut.parameters()]
    x = torch.randn(2, 16, 6, 5)
    assert shortcuts[0](x) is x
    padded = shortcuts[1](x)
    assert padded.shape == (2, 32, 3, 3)
    assert torch.equal(padded[:, 8:24], x[:, :, ::2, ::2])
    assert not padded[:, :8].any() and not padded[:, 24:].any()


@pytest.mark.parametrize("size", [7, 32])
@pytest.mark.parametrize("width", [0.3, 1.0])
def test_shortcuts_fit_what_they_are_added_to(size: int, width: float) -> None:
    for activations in ("real", "ede"):
        model = create_model("resnet20", 10, 1, size, seed=0, width=width, activations=activations)
        assert model(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_real_block_is_the_usual_one() -> None:
    block = create_model("resnet20", seed=0).eval().get_submodule("layer2.0")
    x = torch.randn(2, 16, 8, 8)
    out = F.conv2d(x, block.conv1.weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5
    out = F.conv2d(out.relu(), block.conv2.weight, padding=1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(block(x), (out + block.downsample(x)).relu())


def test_binary_block_ends_each_addition_with_hardtanh() -> None:
    block = create_model("resnet20", seed=0, activations="ede").eval().get_submodule("layer2.0")
    x = torch.randn(2, 16, 8, 8)
    sign = torch.where(x < 0, -1.0, 1.0)
    first = F.conv2d(sign, block.conv1.weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5
    first = (first + block.downsample(x)).clamp(-1, 1)
    second = F.conv2d(torch.where(first < 0, -1.0, 1.0), block.conv2.weight, padding=1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(block(x), (second + first).clamp(-1, 1))


def test_binary_network_has_batch_norm_before_its_last_layer() -> None:
    names = [type(module).__name__ for module in create_model("resnet20", seed=0, activations="ede").children()]
    assert names[-2:] == ["BatchNorm1d", "Linear"]
    assert "PReLU" not in names

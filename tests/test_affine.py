"""What is frozen beside frozen weights, under norms that behave as timm's do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import binarize_weights


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class GlobalResponseNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(1, 1, 1, 4)), nn.Parameter(torch.zeros(1, 1, 1, 4))


class EvoNormB0(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.v = (nn.Parameter(torch.ones(4)) for _ in range(3))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))


class GainedLinear(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class LinearNormActivation(nn.Sequential):
    """A container that is called a norm, with a matrix of its own."""

    def __init__(self) -> None:
        super().__init__(nn.ConvTranspose1d(4, 4, 1), nn.Embedding(4, 4))
        self.table = nn.Parameter(torch.zeros(4, 4))


class NormedLinear(nn.Linear):
    """A linear layer that is called a norm."""


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad and "parametrizations" not in name}


@pytest.mark.parametrize("norm", [RmsNorm, GlobalResponseNorm, EvoNormB0, Scaled])
def test_norms_outside_torch_and_gains_are_frozen(norm: type[nn.Module]) -> None:
    frozen = binarize_weights(nn.Sequential(nn.Linear(4, 4), norm()), "mpt-sign")
    assert trained(frozen) == set()
    for method, train_affine in (("mpt-sign", True), ("bihalf", False)):
        model = binarize_weights(nn.Sequential(nn.Linear(4, 4), norm()), method, train_affine=train_affine)
        assert trained(model) == {"0.bias", *(f"1.{name}" for name, _ in norm().named_parameters())}


def test_the_gain_of_a_layer_is_frozen_unless_the_layer_is_skipped() -> None:
    model = binarize_weights(nn.Sequential(GainedLinear(), GainedLinear()), "mpt-sign", skip="1")
    assert trained(model) == {"1.weight", "1.bias", "1.gain"}


def test_a_container_or_layer_that_is_called_a_norm_goes_on_training_the_rest() -> None:
    model = nn.Sequential(nn.Linear(4, 4), LinearNormActivation(), NormedLinear(4, 4))
    binarize_weights(model, "mpt-sign", skip="2")
    assert trained(model) == {"1.table", "1.0.weight", "1.0.bias", "1.1.weight", "2.weight", "2.bias"}

"""The share of the parameters that a reader may think binary: the counts are those of the layers' shapes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torchvision.models import vit_b_16

from mpt_bihalf import METHODS, MODELS, bake_weights, binarize_weights, create_model
from mpt_bihalf.real_valued import StaysReal, real_matrices


def attention() -> nn.Module:
    """Two layers of attention and a linear one, 240 parameters."""
    return nn.Sequential(
        nn.MultiheadAttention(4, 2, bias=False), nn.MultiheadAttention(4, 2, bias=False), nn.Linear(4, 28, bias=False)
    )


# Two times 3 x 4 x 4 for the inputs and 4 x 4 for the outputs, and 4 x 28.
LINE = f"stay real-valued: in_proj_weight of 2 modules (0, ...), {96 / 240:.1%} of the parameters".replace("%", " %")


def test_one_warning_names_what_stays_real_with_its_share() -> None:
    model = attention()
    with pytest.warns(StaysReal) as warned:
        binarize_weights(model, "mpt-bihalf")
    (warning,) = warned
    assert str(warning.message) == LINE and warning.filename == __file__
    assert real_matrices(model) == real_matrices(bake_weights(model)) == real_matrices(attention()) == LINE


def test_a_quarter_of_a_vision_transformer_is_attentions() -> None:
    with torch.device("meta"):
        line = real_matrices(vit_b_16())
    assert line == (
        "stay real-valued: in_proj_weight of 12 modules (encoder.layers.encoder_layer_0.self_attention, ...), "
        "24.5 % of the parameters"
    )


def test_vectors_and_what_is_less_than_a_hundredth_are_not_worth_a_line() -> None:
    assert real_matrices(nn.Sequential(nn.Linear(99, 99), nn.Embedding(9, 9), nn.LayerNorm(999))) == ""
    shares = nn.Sequential(nn.Linear(9, 9, bias=False), nn.ConvTranspose1d(3, 3, 1, bias=False), nn.Embedding(5, 2))
    assert real_matrices(shares) == "stay real-valued: weight of 2 modules (1, ...), 19.0 % of the parameters"
    assert real_matrices(nn.Embedding(5, 2)) == "stay real-valued: weight, 100.0 % of the parameters"
    assert real_matrices(nn.ReLU()) == ""


@pytest.mark.parametrize("name", MODELS)
def test_the_packages_networks_have_none(name: str) -> None:
    with torch.device("meta"):
        assert real_matrices(create_model(name)) == ""


@pytest.mark.parametrize("method", METHODS)
def test_a_dense_network_is_told_nothing(method: str) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        binarize_weights(attention(), method)
    assert len(warned) == (method != "dense")

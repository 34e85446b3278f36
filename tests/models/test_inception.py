from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from mpt_bihalf import create_model

MIXED = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]


def theirs(classes: int = 10) -> nn.Module:
    return torchvision.models.inception_v3(num_classes=classes, aux_logits=False, init_weights=False)


def test_network_has_torchvisions_parameters_in_its_order() -> None:
    with torch.device("meta"):
        pair = create_model("inception_v3", 100), theirs(100)
    ours, expected = ([(p.shape, p.requires_grad) for p in model.parameters()] for model in pair)
    assert ours == expected


@pytest.mark.parametrize("index", [i for i, name in enumerate(MIXED) if name not in ("6a", "7a")])
def test_modules_compute_what_torchvisions_do(index: int) -> None:
    torch.manual_seed(0)
    reference = theirs().get_submodule(f"Mixed_{MIXED[index]}").eval()
    module = create_model("inception_v3", seed=0).eval().hidden[4 + index]
    module.load_state_dict(dict(zip(module.state_dict(), reference.state_dict().values(), strict=True)))
    x = torch.randn(2, next(reference.parameters()).shape[1], 8, 8)
    torch.testing.assert_close(module(x), reference(x))


@pytest.mark.parametrize("activations", ["real", "clip"])
def test_maps_are_the_images_then_half_and_a_quarter(activations: str) -> None:
    model = create_model("inception_v3", image_size=32, seed=0, width=0.0625, activations=activations)
    sizes: list[int] = []
    for module in model.hidden:
        module.register_forward_hook(lambda _, inputs, out: sizes.append(out.shape[-1]))
    model(torch.randn(2, 3, 32, 32))
    assert sizes == [32] * 7 + [16] * 5 + [8] * 3

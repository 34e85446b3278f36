from __future__ import annotations

import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from mpt_bihalf import METHODS, bake_weights, binarize_weights, binary_layers
from mpt_bihalf.activations import BinaryActivation
from mpt_bihalf.output_scale import is_output_scale


def network() -> nn.Sequential:
    """A first layer that stays real, two layers with biases, and two norms."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.PReLU(), nn.Flatten(), nn.Linear(32, 4),
        nn.LayerNorm(4),
    )  # fmt: skip


@pytest.mark.parametrize("method", list(METHODS))
def test_binary_weights_come_out_frozen_and_the_rest_as_one_would_fine_tune_it(method: str) -> None:
    model = binarize_weights(network(), method, skip=["0"], seed=0)
    baked = bake_weights(model)
    binary = {f"{name}.weight" for name, _, _ in binary_layers(model)}
    assert len(binary) == (0 if method == "dense" else 2)
    assert {name for name, p in baked.named_parameters() if not p.requires_grad} == binary


@pytest.mark.parametrize("method", list(METHODS))
def test_what_the_user_froze_stays_frozen(method: str) -> None:
    model = network()
    frozen = model[0], model[1], model[6]  # a layer that stays real, and norms
    for module in frozen:
        module.requires_grad_(False)
    for train_affine in (False, True):
        binary = binarize_weights(deepcopy(model), method, skip=["0"], seed=0, train_affine=train_affine)
        for baked in (bake_weights(binary), bake_weights(deepcopy(binary))):
            assert not any(p.requires_grad for i in (0, 1, 6) for p in baked[i].parameters())
            assert baked[3].weight.requires_grad


@pytest.mark.parametrize("method", list(METHODS))
def test_fine_tuning_what_is_baked_leaves_its_binary_weights(method: str) -> None:
    model = binarize_weights(network(), method, skip=["0"], seed=0)
    baked = bake_weights(model)
    before = [p.detach().clone() for p in baked.parameters()]
    optimizer = torch.optim.SGD(baked.parameters(), lr=0.1, weight_decay=0.1)
    baked(torch.randn(5, 3, 6, 6)).square().sum().backward()
    optimizer.step()
    for parameter, old in zip(baked.parameters(), before, strict=True):
        assert torch.equal(parameter, old) != parameter.requires_grad


def test_a_baked_layer_and_its_scale_are_torchs_own(tmp_path: Path) -> None:
    model = nn.Sequential(BinaryActivation(), nn.Conv2d(4, 6, 3))
    baked = bake_weights(binarize_weights(model, "mpt-bihalf", 0.5, seed=0)).eval()
    x = torch.randn(2, 4, 7, 7)
    layer = baked[1]
    assert [type(module).__module__.partition(".")[0] for module in layer.modules()] == ["torch"] * 2
    s = torch.where(x >= 0, 1.0, -1.0)
    torch.save((layer, s, layer(s).detach()), tmp_path / "layer.pt")
    program = (
        "import sys, torch; layer, s, y = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.equal(layer(s), y) and 'mpt_bihalf' not in sys.modules\n"
        "with torch.no_grad(): layer.output_scale.alpha.mul_(2); layer.output_scale.bias.mul_(2)\n"
        "assert torch.equal(layer(s), 2 * y)\n"
        "torch.export.export(layer, (s,)); torch.jit.trace(layer, (s,))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "layer.pt")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert is_output_scale(pickle.loads(pickle.dumps(layer)).output_scale)


def test_a_method_that_trains_weights_trains_those_of_a_baked_model() -> None:
    baked = bake_weights(binarize_weights(network(), "mpt-sign", seed=0))
    model = binarize_weights(baked, "sign", init="keep")
    assert all(weight.requires_grad for _, _, weight in binary_layers(model))

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import bake_weights, binarize_weights, create_model
from mpt_bihalf.tickets import export_onnx, export_torch, fold
from tests.reference import one_line_error

EXAMPLE = torch.zeros(2, 3, 32, 32)


def plain(name: str, activations: str) -> nn.Module:
    model = create_model(name, seed=0, width=0.125, activations=activations)
    binarize_weights(model, "mpt-bihalf", 0.7, skip=("first", "last", "downsample"), seed=0)
    for seed in range(3):
        model(images(16, seed) + 0.5)
    return bake_weights(model).eval()


def images(count: int, seed: int = 7) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "activations"),
    [("conv4", "real"), ("vgg_small", "clip"), pytest.param("resnet18", "real", marks=pytest.mark.slow)],
)
def test_onnxruntime_gives_the_same_logits(tmp_path: Path, name: str, activations: str) -> None:
    model, path = plain(name, activations), tmp_path / "a.onnx"
    networks = [model, fold(model, EXAMPLE)[0]] if name == "conv4" else [model]
    for network in networks:
        export_onnx(network, EXAMPLE, path)
        onnx.checker.check_model(onnx.load(path), full_check=True)
        session = onnxruntime.InferenceSession(path)
        for count in (1, 5):
            (logits,) = session.run(["logits"], {"images": images(count).numpy()})
            with torch.no_grad():
                np.testing.assert_allclose(logits, model(images(count)), rtol=1e-4, atol=1e-5)
        assert list(tmp_path.iterdir()) == [path]
        assert most_distinct(path) == 3


def test_a_folded_binary_network_gives_the_very_logits_elsewhere(tmp_path: Path) -> None:
    """From its first sign on it has whole numbers only, until the last scale."""
    model: Any = create_model("conv4", seed=0, width=0.125, activations="clip")
    model = binarize_weights(model[2:], "mpt-bihalf", 0.7, seed=0)
    example = torch.zeros(2, 8, 32, 32)
    x = torch.randn(20, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    for shift in (0.5, 0.2, -0.3):
        model(x + shift)
    model = bake_weights(model).eval()
    folded, removed = fold(model, example)
    assert removed.norms == 5
    export_onnx(folded, example, tmp_path / "a.onnx")
    export_torch(folded, example, tmp_path / "a.pt2")
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(torch.export.load(tmp_path / "a.pt2").module()(x), expected)
    (logits,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(["logits"], {"images": x.numpy()})
    assert np.array_equal(logits, expected.numpy())


def most_distinct(path: Path) -> int:
    """Distinct values in a filter of the graph's binary layers, at most."""
    graph = onnx.load(path).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    weights = []
    for node in layers[1:-1]:  # the first and the last stay real-valued, and the 1x1 convolutions, which downsample
        weight, turned = held[node.input[1]], any(a.name == "transB" and a.i for a in node.attribute)
        if weight.ndim == 2:
            weights.append(weight if turned else weight.T)
        elif weight.shape[2:] == (3, 3):
            weights.append(weight)
    assert len(weights) >= 5
    return max(len(np.unique(row)) for weight in weights for row in weight)


def test_torch_export_is_loaded_without_this_package(tmp_path: Path) -> None:
    model, path = plain("vgg_small", "clip"), tmp_path / "a.pt2"
    export_torch(model, EXAMPLE, path)
    torch.save((images(5), model(images(5)).detach()), tmp_path / "xy")
    program = (
        "import sys, torch; torch.set_num_threads(1); x, y = torch.load(sys.argv[2])\n"
        "model = torch.export.load(sys.argv[1]).module()\n"
        "torch.testing.assert_close(model(x), y); assert 'mpt_bihalf' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "xy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    for write in (export_onnx, export_torch):
        with one_line_error("cannot be exported"):
            write(Branching(), EXAMPLE, tmp_path / "a")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnxscript":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with one_line_error(r"mpt_bihalf\[export\]"):
        export_onnx(nn.Linear(2, 2), torch.zeros(2, 2), tmp_path / "a")
    assert not list(tmp_path.iterdir())

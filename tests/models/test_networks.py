"""What all networks have in common."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import MODELS, create_model
from mpt_bihalf.binarizable import BINARIZABLE
from mpt_bihalf.data import load_dataset
from mpt_bihalf.parametrization import binary_layers
from mpt_bihalf.training import Run, train_step
from mpt_bihalf.training.build import build_network, build_optimizer
from tests.reference import half_up, one_line_error

CONV = ("conv2", "conv4", "conv6", "conv8")
DEEP = [name for name in MODELS if name not in CONV]
# One of each kind; torch takes a millisecond for each shape that it works out.
QUICK = ("conv2", "resnet18", "resnet20", "vgg_small", "shufflenet")
KINDS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]
METHODS = ("bihalf", "mpt-bihalf", "mpt-balanced")
ACTIVATIONS = ("real", "binary")

DOWNSAMPLE = ["layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0"]
SKIPPED = {
    **{name: [] for name in CONV},
    "resnet18": ["conv1", *DOWNSAMPLE, "fc"],
    "resnet34": ["conv1", *DOWNSAMPLE, "fc"],
    "wide_resnet34": ["conv1", *DOWNSAMPLE, "fc"],
    "wide_resnet50": ["conv1", "layer1.0.downsample.0", *DOWNSAMPLE, "fc"],
    "resnet20": ["conv1", "fc"],
    "vgg_small": ["features.0", "classifier"],
    "vgg16": ["features.0", "classifier"],
    "inception_v3": ["conv", "fc"],
    "shufflenet": ["conv1", "fc"],
}


def small(name: str, method: str = "bihalf", activations: str = "real", **choices: object) -> Run:
    return Run(model=name, method=method, activations=activations, width=0.125, **choices)  # type: ignore[arg-type]


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BINARIZABLE)}


@pytest.mark.parametrize("activations", ["real", "clip"])
@pytest.mark.parametrize("name", list(MODELS))
def test_networks_map_small_images_to_logits(name: str, activations: str) -> None:
    for channels, classes, size in ((3, 7, 32), (1, 10, 16), (2, 3, (16, 32))):
        model = create_model(name, classes, channels, size, seed=0, width=0.125, activations=activations)
        height, width = (size, size) if isinstance(size, int) else size
        assert model(torch.randn(2, channels, height, width)).shape == (2, classes)


@pytest.mark.parametrize("activations", ["real", "ede"])
@pytest.mark.parametrize("name", DEEP)
def test_deep_networks_take_images_of_any_size(name: str, activations: str) -> None:
    for size in (1, 8, (5, 7)):
        model = create_model(name, 3, 1, size, seed=0, width=0.0625, activations=activations)
        assert model(torch.randn(2, 1, *((size, size) if isinstance(size, int) else size))).shape == (2, 3)
    with one_line_error("0x8"):
        create_model(name, image_size=(0, 8))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "shufflenet"])
@pytest.mark.parametrize("width", [0.01, 0.25, 1.5])
def test_width_multiplies_all_hidden_channels(name: str, width: float) -> None:
    with torch.device("meta"):
        usual, other = layers_of(create_model(name)), layers_of(create_model(name, width=width))
    assert list(usual) == list(other)
    filters = [(usual[layer].weight.shape[0], other[layer].weight.shape[0]) for layer in usual]
    assert all(ours == max(1, half_up(width, before)) for before, ours in filters[:-1])
    assert filters[-1] == (10, 10)


@pytest.mark.parametrize("name", KINDS)
def test_all_but_the_first_the_last_and_downsampling_layers_of_deep_networks_are_binarized(name: str) -> None:
    for activations in ACTIVATIONS:
        for method in ("bihalf", "mpt-balanced"):
            with torch.device("meta"):
                model = build_network(small(name, method, activations), 10, 3, 32)
            binarized = [layer for layer, *_ in binary_layers(model)]
            assert [layer for layer in layers_of(model) if layer not in binarized] == SKIPPED[name]
            assert len(binarized) + len(SKIPPED[name]) == len(layers_of(model))


# Each network with each kind of activation; those of one kind are alike in how a method trains them.
STEPS = [
    pytest.param(name, activations, method, marks=() if name in QUICK or method == usual else pytest.mark.slow)
    for name in MODELS
    for activations, usual in (("real", "bihalf"), ("binary", "mpt-bihalf"))
    for method in METHODS
]


@pytest.mark.parametrize(("name", "activations", "method"), STEPS)
def test_a_training_step_moves_all_that_is_trained(name: str, activations: str, method: str) -> None:
    run = small(name, method, activations)
    model = build_network(run, 10, 3, 32)
    optimizer = build_optimizer(run, model)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    totals = train_step(model, optimizer, images, torch.tensor([1, 5, 0, 9]))
    assert totals.isfinite().all() and totals[0] > 0
    for key, value in model.named_parameters():
        assert value.isfinite().all()
        assert torch.equal(value, before[key]) != value.requires_grad, key
    for layer, part, weight in binary_layers(model):
        trained = weight if part.scores is None else part.scores
        assert trained.grad is not None and trained.grad.any(), layer


@pytest.mark.parametrize("method", ["bihalf", pytest.param("mpt-bihalf", marks=pytest.mark.slow), "mpt-balanced"])
@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_a_training_step_runs_where_nothing_has_values(name: str, activations: str, method: str) -> None:
    with torch.device("meta"):
        run = small(name, method, activations)
        model = build_network(run, 10, 3, 32)
        x, y = torch.empty(4, 3, 32, 32), torch.empty(4, dtype=torch.long)
    totals = train_step(model, build_optimizer(run, model), x, y)
    assert totals.is_meta and totals.shape == (3,)


@pytest.mark.parametrize("name", list(MODELS))
def test_binary_activations_are_all_that_a_binarized_layer_sees(name: str) -> None:
    model = build_network(small(name, "bihalf", "binary"), 10, 3, 32)
    seen: dict[str, Tensor] = {}
    layers = layers_of(model)
    for layer, *_ in binary_layers(model):
        layers[layer].register_forward_pre_hook(lambda _, inputs, layer=layer: seen.update({layer: inputs[0]}))
    for training in (True, False):
        seen.clear()
        model.train(training)(torch.randn(4, 3, 32, 32))
        fed = [layer for layer, *_ in binary_layers(model)]
        assert list(seen) and set(seen) == set(fed)
        for layer in fed[1:] if name in CONV else fed:
            assert seen[layer].abs().eq(1).all(), layer
            assert seen[layer].unique().numel() == 2 or not training, layer  # neither is it constant


@pytest.mark.parametrize("name", list(MODELS))
def test_real_networks_have_no_sign_and_binary_ones_no_relu(name: str) -> None:
    with torch.device("meta"):
        models = [create_model(name, activations=activations) for activations in ("real", "clip")]
    real, binary = ([type(module).__name__ for module in model.modules()] for model in models)
    assert "BinaryActivation" not in real and "ReLU" in real
    assert "BinaryActivation" in binary and "ReLU" not in binary


@pytest.mark.parametrize("train_affine", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_norms_and_slopes_are_frozen_with_the_weights_unless_asked_for(name: str, train_affine: bool) -> None:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.PReLU)
    for method, trained in (("bihalf", True), ("mpt-bihalf", train_affine), ("mpt-balanced", train_affine)):
        with torch.device("meta"):
            model = build_network(small(name, method, "binary", train_affine=train_affine), 10, 3, 32)
        affine = [p for m in model.modules() if isinstance(m, kinds) for p in m.parameters()]
        assert affine and all(p.requires_grad == trained for p in affine)


@cache
def digits() -> tuple[Tensor, Tensor]:
    images = load_dataset("digits", image_size=32).train
    x = images.images[:64].float()
    return (x - x.mean()) / x.std(), images.labels[:64]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("name", list(MODELS))
def test_networks_fit_64_images(name: str, activations: str, method: str) -> None:
    """At least 95 % of them, with the batch's own statistics in batch norm."""
    width = {"inception_v3": 0.125, "resnet20": 1.0, "shufflenet": 0.5}.get(name, 0.25)
    adam = {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.0}
    run = Run(model=name, method=method, activations=activations, width=width, **adam)  # type: ignore[arg-type]
    torch.set_num_threads(1)
    model = build_network(run, 10, 1, 32)
    optimizer = build_optimizer(run, model)
    hits = []
    for _ in range(400):
        hits.append(train_step(model, optimizer, *digits())[1].item())
        if hits[-1] >= 61:
            break
    assert max(hits) >= 61, hits

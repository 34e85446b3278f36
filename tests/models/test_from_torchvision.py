from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from mpt_bihalf import create_model
from mpt_bihalf.binarizable import BINARIZABLE
from mpt_bihalf.models import find_network
from mpt_bihalf.parametrization import binary_layers
from mpt_bihalf.training import Run, train_step
from mpt_bihalf.training.build import build_network, build_optimizer, check_network
from tests.reference import one_line_error

EVERY = torchvision.models.list_models(module=torchvision.models)
# A kind each; all of them take minutes.
QUICK = ["alexnet", "googlenet", "squeezenet1_1", "vit_b_16"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EVERY]
)
def test_any_classifier_can_be_had(name: str) -> None:
    run = Run(model=f"torchvision:{name}")
    layers = [layer for layer, module in check_network(run).named_modules() if isinstance(module, BINARIZABLE)]
    with torch.device("meta"):
        model = build_network(run, 7, 1, 224)
        binarized = [layer for layer, *_ in binary_layers(model)]
    assert layers[0] not in binarized and layers[-1] not in binarized and binarized
    assert model.training
    with torch.no_grad():
        assert model.eval()(torch.empty(1, 1, 224, 224, device="meta")).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "shortcuts"),
    [
        ("resnet18", [f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)]),
        ("regnet_x_400mf", [f"trunk_output.block{stage}.block{stage}-0.proj.0" for stage in (1, 2, 3, 4)]),
        ("maxvit_t", [f"blocks.{stage}.layers.0.layers.MBconv.proj.1" for stage in (0, 1, 2, 3)]),
        ("swin_t", []),  # what is called proj there is attention's
        ("mobilenet_v2", []),
    ],
)
def test_only_the_first_the_last_and_shortcut_layers_stay_real_valued(name: str, shortcuts: list[str]) -> None:
    with torch.device("meta"):
        model = build_network(Run(model=f"torchvision:{name}"), 7, 3, 224)
    layers = [layer for layer, module in model.named_modules() if isinstance(module, BINARIZABLE)]
    binarized = [layer for layer, *_ in binary_layers(model)]
    assert [layer for layer in layers if layer not in binarized] == [layers[0], *shortcuts, layers[-1]]


def test_a_classifier_is_torchvisions_with_weights_of_the_seed() -> None:
    ours, again = (create_model("torchvision:resnet18", 10, seed=1) for _ in range(2))
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))
    conv = ours.get_submodule("layer1.0.conv1")
    assert conv.weight.std().item() == pytest.approx((2 / conv.weight[0].numel()) ** 0.5, rel=0.02)


@pytest.mark.parametrize("seed", [None, 5])
def test_only_without_a_seed_the_global_generator_is_drawn_from(seed: int | None) -> None:
    before = torch.get_rng_state()
    create_model("torchvision:squeezenet1_1", image_size=64, seed=seed)
    assert torch.equal(torch.get_rng_state(), before) == (seed is not None)


def test_the_first_convolution_takes_the_images_channels() -> None:
    model = create_model("torchvision:densenet121", 4, 2, 32, seed=0)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert (first.in_channels, first.kernel_size, first.stride, first.padding) == (2, (7, 7), (2, 2), (3, 3))
    assert first.bias is None
    assert model(torch.randn(2, 2, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("method", ["bihalf", "mpt-bihalf"])
def test_a_transformer_takes_a_training_step(method: str) -> None:
    run = Run(model="torchvision:vit_b_16", method=method)
    with torch.device("meta"):
        model = build_network(run, 10, 3, 32)
        x, y = torch.empty(2, 3, 32, 32), torch.empty(2, dtype=torch.long)
    assert train_step(model, build_optimizer(run, model), x, y).shape == (3,)


def test_a_small_classifier_takes_a_training_step() -> None:
    run = Run(model="torchvision:squeezenet1_1", method="mpt-balanced", prune_rate=0.3)
    model = build_network(run, 10, 1, 32)
    optimizer = build_optimizer(run, model)
    assert train_step(model, optimizer, torch.randn(2, 1, 32, 32), torch.tensor([3, 4])).isfinite().all()
    assert all(part.scores.grad.any() for _, part, _ in binary_layers(model))


@pytest.mark.parametrize(
    ("name", "choices", "says"),
    [
        ("resnet19", {}, "no classifier 'resnet19'; near: .*torchvision:resnet18"),
        ("zzzzzz", {}, "no classifier 'zzzzzz'$"),
        ("", {}, "no classifier ''"),
        ("fcn_resnet50", {}, "no classifier 'fcn_resnet50'"),
        ("resnet18", {"activations": "clip"}, "binary activations need a network built for them.*torchvision:resnet18"),
        ("resnet18", {"width": 0.5}, "width must be 1, not 0.5"),
        ("inception_v3", {"image_size": 32}, "torchvision:inception_v3 does not take images of 32x32: "),
        ("alexnet", {"image_size": (32, 48)}, "torchvision:alexnet does not take images of 32x48: "),
        ("vit_b_16", {"image_size": 40}, "does not take images of 40x40: .*patch size"),
        ("vit_b_16", {"image_size": (32, 64)}, "32x64: it takes square ones"),
        ("maxvit_t", {"image_size": 64}, "does not take images of 64x64: "),
    ],
)
def test_what_cannot_be_built_is_an_error_of_one_line(name: str, choices: dict, says: str) -> None:
    with one_line_error(says):
        create_model(f"torchvision:{name}", **choices)


def test_a_run_of_an_unknown_classifier_is_refused() -> None:
    with one_line_error("near: .*torchvision:vgg16"):
        Run(model="torchvision:vgg17")
    with one_line_error("known: .*torchvision:NAME"):
        find_network("resnet19")


def test_a_run_is_named_without_a_colon() -> None:
    assert Run(model="torchvision:resnet18").name.startswith("torchvision-resnet18-digits-")


def test_torchvision_is_not_imported_without_need() -> None:
    code = "import sys, mpt_bihalf.models; sys.exit('torchvision.models' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_of_a_regnet_is_made_on_the_host_for_its_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    draw = nn.Conv2d.reset_parameters
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda layer: made.append(layer.weight.is_meta) or draw(layer))
    with torch.device("meta"):
        create_model("torchvision:regnet_y_400mf", image_size=64)
    assert made and all(made)

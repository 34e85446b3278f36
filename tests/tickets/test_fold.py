from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import bake_weights, binarize_weights, create_model
from mpt_bihalf.tickets import fold
from tests.reference import one_line_error

NETWORKS = ["conv4", "resnet18", "resnet20", "vgg_small", "vgg16", "shufflenet", "inception_v3"]


def images(count: int = 6, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def lived_in(model: nn.Module) -> nn.Module:
    """With statistics and affine parameters in its batch norms that are not those of a new one."""
    g = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                    tensor.copy_(torch.rand(tensor.shape, generator=g) + low)
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=g) / 4)
    return model.double().eval()


def plain(name: str, rate: float, activations: str = "real", method: str = "mpt-sign") -> nn.Module:
    choices = {} if ":" in name else {"width": 0.125, "activations": activations}
    model = create_model(name, seed=0, **choices)  # type: ignore[arg-type]
    skip = () if name.startswith("conv") else ("first", "last", "downsample")
    return lived_in(bake_weights(binarize_weights(model, method, rate, skip=skip, seed=0)))


@pytest.mark.parametrize(
    ("activations", "rate"),
    [
        ("real", 0.5),
        ("clip", 0.98),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("real", 0.98), ("clip", 0.5)]),
    ],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_gives_the_same_outputs(name: str, activations: str, rate: float) -> None:
    model = plain(name, rate, activations)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded, removed = fold(model, images(2))
    with torch.no_grad():
        torch.testing.assert_close(folded(images()), model(images()), rtol=1e-10, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert removed.parameters_before == sum(p.numel() for p in model.parameters())
    assert removed.parameters_after == sum(p.numel() for p in folded.parameters())


@pytest.mark.parametrize(
    "name", [*NETWORKS[:4], *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS[4:])]
)
def test_in_float32_outputs_are_within_1e_5_of_the_largest(name: str) -> None:
    model, x = plain(name, 0.9).float(), images().float()
    folded, _ = fold(model, x)
    with torch.no_grad():
        expected = model(x)
        assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "torchvision:mobilenet_v2"])
def test_each_batch_norm_after_a_layer_is_folded(name: str) -> None:
    model = plain(name, 0.5)
    folded, removed = fold(model, images(2))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert removed.norms == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images()), model(images()), rtol=1e-10, atol=1e-12)


def test_a_filter_has_no_more_distinct_weights_than_before() -> None:
    folded, _ = fold(plain("resnet18", 0.5), images(2))
    hidden = [module for module in folded.modules() if isinstance(module, nn.Conv2d)][1:]
    counts = [len(row.unique()) for layer in hidden if layer.kernel_size == (3, 3) for row in layer.weight.flatten(1)]
    assert max(counts) <= 3


def chain(padding: int, between: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(8), between or nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle, nn.Conv2d(8, 4, 3, padding=padding))
    return lived_in(model.append(nn.Flatten()).append(nn.Linear(4 * (4 if padding else 2) ** 2, 5)))  # type: ignore


def test_dead_and_unused_filters_go_and_constants_are_carried_on() -> None:
    for padding, removed_dead in ((0, 3), (1, 1)):  # a constant that is not 0 cannot pass a border of zeros
        model = chain(padding)
        with torch.no_grad():
            model[0].weight[[1, 4, 6]] = 0
            model[1].bias[[1, 4]], model[1].running_mean[[1, 4]] = 3.0, 0.0  # after ReLU above 0
            model[1].bias[6], model[0].bias[6] = -100.0, 0.0  # and 0
            model[4].weight[:, [0, 7]] = 0
        folded, removed = fold(model, images(2, 8))
        assert (removed.dead, removed.unused) == (removed_dead, 2)
        with torch.no_grad():
            torch.testing.assert_close(folded(images(4, 8)), model(images(4, 8)), rtol=1e-10, atol=1e-12)


def test_what_goes_leaves_others_behind_that_go_too() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        model[4].weight[:, 3] = 0  # so unit 3 is unused,
        model[2].weight[[0, 1, 2, 4], 5] = 0  # the only one that reads unit 5
    x = torch.randn(7, 4, dtype=torch.float64)
    folded, removed = fold(model, x)
    assert (removed.dead, removed.unused) == (0, 2)
    torch.testing.assert_close(folded(x), model(x))


def test_channels_of_a_residual_sum_stay() -> None:
    model = plain("resnet18", 0.5)
    with torch.no_grad():
        model.layer1[0].conv2.weight[3] = 0  # type: ignore[index, union-attr]
    folded, removed = fold(model, images(2))
    assert removed.dead == 0
    with torch.no_grad():
        torch.testing.assert_close(folded(images()), model(images()), rtol=1e-10, atol=1e-12)


def test_no_norm_that_a_sign_follows_is_folded() -> None:
    model = plain("vgg_small", 0.5, "clip")
    _, removed = fold(model, images(2))
    assert removed.norms == 0


def test_what_cannot_be_folded_is_refused_in_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    for model, why in (
        (binarize_weights(nn.Sequential(nn.Linear(3, 3)), "sign"), "bake_weights"),
        (Branching(), "cannot trace"),
        (nn.Linear(5, 2), "does not take"),
    ):
        with one_line_error(why):
            fold(model, torch.zeros(1, 3))

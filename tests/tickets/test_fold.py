from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import bake_weights, binarize_weights, create_model
from mpt_bihalf.activations import BinaryActivation
from mpt_bihalf.output_scale import is_output_scale, put_scales_behind, scale_behind
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


def test_a_norm_that_a_sign_follows_is_folded_only_behind_whole_numbers() -> None:
    model = plain("vgg_small", 0.5, "clip")
    folded, removed = fold(model, images(2))
    assert removed.norms == 5  # all but that of the first layer, whose inputs are real
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 1
    choices: dict[str, Any] = {"skip": ("first", "last"), "seed": 0, "scale_on": "weight"}
    on_weights = binarize_weights(create_model("vgg_small", seed=0, width=0.125, activations="clip"), "sign", **choices)
    _, removed = fold(lived_in(bake_weights(on_weights)), images(2))
    assert removed.norms == 0


def of_both_signs(model: nn.Module) -> nn.Module:
    """Batch norms that rise and fall, and some that are constant."""
    for module in lived_in(model).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.weight[::2] *= -1
                module.weight[1::5] = 0
                module.running_mean.mul_(10)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "method", "rate"),
    [("conv4", "bihalf", 0), ("conv4", "mpt-bihalf", 0.97), ("vgg16", "irnet", 0), ("vgg_small", "mpt-sign", 0.5)],
)
def test_scale_and_norm_become_a_threshold_that_changes_no_output(
    name: str, method: str, rate: float, dtype: torch.dtype
) -> None:
    model = create_model(name, seed=0, width=0.25, activations="clip")
    skip = () if name == "conv4" else ("first", "last")
    binarize_weights(model, method, rate, skip=skip, seed=0, train_affine=True)
    model = of_both_signs(bake_weights(model)).to(dtype)
    x = images(64).to(dtype)
    folded, removed = fold(model, x[:2])
    assert removed.norms == sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()) - 1
    with torch.no_grad():
        assert torch.equal(folded(x), model(x))
    scales = [module for module in folded.modules() if is_output_scale(module)]
    whole = [all((t == t.round()).all() for t in scale.state_dict().values()) for scale in scales]
    assert whole.count(True) == removed.norms
    for layout in (torch.channels_last, torch.contiguous_format):
        with torch.no_grad():
            assert torch.equal(folded.to(memory_format=layout)(x), folded(x))


def test_a_threshold_lies_where_the_sign_turns() -> None:
    """Against all sums that a filter of nine weights may have."""
    g = torch.Generator().manual_seed(0)
    layer = binarize_weights(nn.Sequential(BinaryActivation(), nn.Linear(9, 200)), "sign", seed=0)
    model = nn.Sequential(*bake_weights(layer), nn.BatchNorm1d(200), BinaryActivation(), nn.Linear(200, 1)).eval()
    norm: Any = model[2]
    with torch.no_grad():
        norm.weight.copy_(torch.randn(200, generator=g))
        norm.bias.copy_(torch.randn(200, generator=g))
        norm.bias[:50] = 0
        norm.running_mean.copy_(2 * torch.randn(200, generator=g))
        norm.running_mean[:20] = 0
    folded, removed = fold(model, torch.randn(3, 9))
    assert removed.norms == 1
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 9)
    with torch.no_grad():
        assert torch.equal(folded(signs), model(signs))
        threshold = next(m for m in folded.modules() if is_output_scale(m))
        layer_of = folded.get_submodule("1")
        assert torch.equal(threshold(layer_of(signs)) >= 0, norm(model[1](signs)) >= 0)


def test_no_threshold_is_made_of_sums_that_are_not_whole() -> None:
    class Scaling(BinaryActivation):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0.37

    class Altering(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.leaky_relu(x, 0.3, inplace=True)

    class Aside(nn.Module):
        """Whose signs are written over, though the value of that is not what goes on."""

        def __init__(self) -> None:
            super().__init__()
            self.sign = BinaryActivation()

        def forward(self, x: Tensor) -> Tensor:
            x = self.sign(x)
            x.mul_(0.3)
            return x

    x = torch.randn(50, 12)
    kinds = {"scaling": Scaling(), "altering": nn.Sequential(BinaryActivation(), Altering()), "aside": Aside()}
    for kind, activation in {"whole": BinaryActivation(), "trained": BinaryActivation(), **kinds}.items():
        torch.manual_seed(0)
        rest = nn.Linear(12, 8), nn.BatchNorm1d(8), BinaryActivation(), nn.Linear(8, 4)
        model = nn.Sequential(nn.Linear(12, 12), activation, *rest)
        binarize_weights(model, "sign", skip=["0", "5"], seed=0, example=x)
        model = lived_in(bake_weights(model)).float()
        if scale_behind(model[2]) is None:  # as if signs had fed it
            put_scales_behind(model, {"2": torch.tensor(0.3)})
        with torch.no_grad():
            model[2].weight.sign_()
            if kind == "trained":
                model[2].weight.mul_(torch.rand(8, 12))
            folded, removed = fold(model, x[:2])
            assert removed.norms == (1 if kind == "whole" else 0), kind
            assert torch.equal(folded(x), model(x)), kind


def test_a_norm_behind_a_scale_is_folded_into_it() -> None:
    layers = nn.Conv2d(3, 8, 3), BinaryActivation(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    torch.manual_seed(0)
    model = binarize_weights(nn.Sequential(*layers, nn.Linear(8 * 16, 4)).double(), "sign", skip=["0", "6"], seed=0)
    model = lived_in(bake_weights(model))
    folded, removed = fold(model, images(2, 8))
    assert removed.norms == 1
    assert torch.equal(folded.get_submodule("2").weight, model[2].weight)
    with torch.no_grad():
        torch.testing.assert_close(folded(images(4, 8)), model(images(4, 8)), rtol=1e-12, atol=1e-12)


def test_dead_filters_behind_a_scale_go() -> None:
    """Their sign is that of their threshold, whatever the image."""
    layers = nn.Linear(12, 8), BinaryActivation(), nn.Linear(8, 8), nn.BatchNorm1d(8), BinaryActivation()
    torch.manual_seed(0)
    model = binarize_weights(nn.Sequential(*layers, nn.Linear(8, 4)), "sign", skip=["0", "5"], seed=0)
    model = lived_in(bake_weights(model)).float()
    with torch.no_grad():
        model[2].weight[[1, 4]] = 0
    x = torch.randn(20, 12)
    folded, removed = fold(model, x[:2])
    assert removed[:3] == (1, 2, 0)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x))


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

"""Which layers a method is put on; the layers that change their weights behave as those of timm do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import METHODS, bake_weights, binarize_weights, binary_weights, fix_masks
from tests.reference import one_line_error


class StandardisedConv2d(nn.Conv2d):
    """The weight of each filter at mean 0 and variance 1 (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledConv2d(nn.Conv2d):
    """A gain for each filter, where torch's own forward calls."""

    def __init__(self, *sizes: int, **choices: Any) -> None:
        super().__init__(*sizes, **choices)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * self.gain, bias)


class MaskedConv2d(nn.Conv2d):
    """Weights set to zero before each pass (PixelCNN)."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data[:, :, 1:] *= 0
        return super().forward(x)


class SameConv2d(nn.Conv2d):
    """Only pads its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 2, 0, 2)), self.weight, self.bias, self.stride)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution of [N, H, W, C] as a matrix product, in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype).flatten(1), self.bias)


class OfTwo(nn.Linear):
    """Takes two inputs, so that it cannot be tried by itself."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x * other, self.weight, self.bias)


class Body(nn.Module):
    """A 3x3 convolution of this class and a head that was made first, for images of 3x8x8."""

    def __init__(self, kind: Callable[..., nn.Conv2d] = nn.Conv2d, scale: float | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.conv = kind(3, 4, 3)
        self.body = nn.Linear(4, 4)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        weight = self.body.weight if self.scale is None else self.body.weight * self.scale
        return self.head(F.linear(x, weight).relu())


IMAGE = torch.zeros(1, 3, 8, 8)


def state(model: nn.Module) -> list[Any]:
    tensors = [(name, tensor.clone()) for name, tensor in model.state_dict().items()]
    return [*map(type, model.modules()), *(p.requires_grad for p in model.parameters()), *tensors]


def assert_unchanged(model: nn.Module, before: list[Any]) -> None:
    for a, b in zip(before, state(model), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1]) if isinstance(a, tuple) else a == b


@pytest.mark.parametrize("example", [None, IMAGE])
@pytest.mark.parametrize("kind", [StandardisedConv2d, ScaledConv2d, MaskedConv2d])
@pytest.mark.parametrize("method", ["mpt-bihalf", "sign"])
def test_a_layer_that_changes_its_weight_is_refused_by_name(
    method: str, kind: type[nn.Conv2d], example: Tensor | None
) -> None:
    model, random = Body(kind), torch.get_rng_state()
    before = state(model)
    with one_line_error(rf"'conv' \({kind.__name__}\) is changed before it is used.*skip"):
        binarize_weights(model, method, example=example)
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), random)
    binarize_weights(model, method, skip="conv", example=example)
    assert list(binary_weights(model)) == ["head", "body"]


def test_of_many_layers_that_change_their_weights_the_others_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), *(StandardisedConv2d(3, 3, 3) for _ in range(3)))
    with one_line_error(r"'1' \(StandardisedConv2d\) \(and of 2 more\) is changed"):
        binarize_weights(model)


def test_a_dense_network_may_change_its_weights() -> None:
    assert binary_weights(binarize_weights(Body(StandardisedConv2d), "dense", example=IMAGE)) == {}


@pytest.mark.parametrize("example", [None, IMAGE])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "dense"])
def test_a_layer_that_only_pads_is_binarized(method: str, example: Tensor | None) -> None:
    model = binarize_weights(Body(SameConv2d), method, seed=0, example=example)
    assert list(binary_weights(model)) == ["head", "conv", "body"]
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), bake_weights(model)(x))


def test_a_layer_that_takes_something_else_needs_an_example() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.of_two = nn.Linear(4, 4), OfTwo(4, 5)
            self.pointwise = Pointwise(5, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pointwise(self.of_two(x, self.one(x)))

    model = Two()
    before = state(model)
    for skip in ((), "of_two"):
        name = "pointwise" if skip else "of_two"
        with one_line_error(f"layer '{name}' .* cannot be tried by itself .*give example=.*skip"):
            binarize_weights(model, skip=skip)
    assert_unchanged(model, before)
    assert list(binary_weights(binarize_weights(model, example=torch.zeros(2, 4)))) == ["one", "of_two", "pointwise"]


def test_a_parent_that_scales_a_layers_weight_is_seen_by_the_example() -> None:
    for scale, names in ((None, ["head", "conv", "body"]), (0.5, ["head", "conv"])):
        model = Body(scale=scale)
        if scale:
            with one_line_error(r"'body' \(Linear\) is changed"):
                binarize_weights(deepcopy(model), example=IMAGE)
        assert list(binary_weights(binarize_weights(model, skip="body" if scale else (), example=IMAGE))) == names


def test_a_layer_that_the_example_does_not_use_is_tried_by_itself() -> None:
    class Unused(Body):
        def __init__(self, kind: type[nn.Conv2d]) -> None:
            super().__init__()
            self.auxiliary = kind(4, 4, 3)

    with one_line_error("'auxiliary'"):
        binarize_weights(Unused(StandardisedConv2d), example=IMAGE)
    model = binarize_weights(Unused(SameConv2d), skip=("first", "last"), example=IMAGE)
    assert list(binary_weights(model)) == ["body", "auxiliary"]


# First and last


class TwoHeads(Body):
    """A head for classes beside the one that was made first."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.body(self.conv(x).mean((2, 3)))
        return self.head(x), self.other(x)


@pytest.mark.parametrize(
    ("make", "skip", "left"),
    [
        (Body, "last", ["conv", "body"]),
        (Body, "first", ["head", "body"]),
        (TwoHeads, ("first", "last"), ["body"]),
        (Body, ("conv", "last"), ["body"]),
    ],
)
@pytest.mark.parametrize("example", [IMAGE, (IMAGE,), IMAGE.to("meta")], ids=["tensor", "tuple", "meta"])
def test_first_and_last_go_by_use_where_an_example_is_known(
    make: Callable[[], nn.Module], skip: Any, left: list[str], example: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(binary_weights(binarize_weights(make(), skip=skip, example=example))) == left


@pytest.mark.parametrize(
    ("skip", "left", "told"),
    [
        ("first", ["conv", "body"], "'head' for 'first'"),
        (["last"], ["head", "conv"], "'body' for 'last'"),
        (("last", "first"), ["conv"], "'head' for 'first' and 'body' for 'last'"),
    ],
)
def test_without_an_example_a_warning_tells_what_was_taken(skip: Any, left: list[str], told: str) -> None:
    with pytest.warns(UserWarning, match="^skip: took ") as warned:
        model = binarize_weights(Body(), skip=skip)
    assert list(binary_weights(model)) == left
    (warning,) = warned
    text = str(warning.message)
    assert told in text and "example=" in text and "\n" not in text and warning.filename == __file__


def test_names_and_other_rules_need_no_example() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        binarize_weights(Body(), skip=("head", "downsample", "none"))


def test_a_first_layer_that_no_example_shows_is_to_be_named() -> None:
    class Table(Body):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.zeros(2, 3, 8, 8))

    with one_line_error("skip: no layer is seen to be the first.*name it"):
        binarize_weights(Table(), skip="first", example=IMAGE)
    assert list(binary_weights(binarize_weights(Table(), skip="last", example=IMAGE))) == ["conv", "body"]


def test_an_example_that_does_not_fit_changes_nothing() -> None:
    model = Body()
    before = state(model)
    with one_line_error("^example: the model does not take it: "):
        binarize_weights(model, example=torch.zeros(1, 4, 8, 8))
    assert_unchanged(model, before)


def test_a_wrapped_model_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Linear(3, 2))
    finally:
        torch.distributed.destroy_process_group()
    with one_line_error("binarize the model first, then wrap it"):
        binarize_weights(wrapped, "sign")


class Aliased(nn.Module):
    """A buffer in the memory of a layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("again", self.layer.weight.detach())


def expanded() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.randn(1, 8).expand(8, 8))
    return layer


def masked() -> nn.Module:
    layer = nn.Linear(4, 4)
    fix_masks(layer, {"": torch.eye(4)})
    return layer


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Aliased, "layer 'layer' shares its weight with 'again'"),
        (expanded, "expanded weight"),
        (masked, "has a fixed mask: binarize it first, then call fix_masks"),
    ],
)
def test_a_weight_that_is_none_of_its_own_is_refused(make: Any, told: str) -> None:
    with one_line_error(told):
        binarize_weights(make(), "sign")


def test_where_all_layers_are_skipped_the_error_names_them() -> None:
    with one_line_error("no convolution or linear layer is left to binarize: skip takes '0', '1'"):
        binarize_weights(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "sign", skip=["0", "1"])


def test_an_example_may_be_keyword_arguments() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(4, 2), nn.Linear(4, 4)

        def forward(self, *, ids: Tensor) -> Tensor:
            return self.head(self.body(ids))

    model = binarize_weights(Keyword(), "sign", skip="last", example={"ids": torch.randn(1, 4)})
    assert list(binary_weights(model)) == ["body"]

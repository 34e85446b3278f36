"""The layout with the images of a batch side by side: what has it, and modules that keep it."""

from __future__ import annotations

from copy import deepcopy
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf.images_last import are_last, empty, forget_layout, images_last, keep_layout


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (5, 7), (1, 3, 4, 6), (5, 3, 1, 1)])
def test_a_batch_in_this_layout_has_the_same_values(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    forms = [x, x.transpose(1, -1).contiguous().transpose(1, -1)]
    forms += [x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)] if x.dim() == 4 else []
    for form in forms:
        last = images_last(form)
        assert torch.equal(last, form)
        assert len(x) == 1 or (are_last(last) and images_last(last) is last)


def test_what_is_made_empty_is_in_this_layout() -> None:
    assert empty(5, 2, 3, 4).shape == (5, 2, 3, 4)
    assert empty(5, 2, 3, 4).stride() == (1, 60, 20, 5)
    assert empty(5, 7).stride() == (1, 5)


POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, padding=1),
    nn.MaxPool2d(3, 1, ceil_mode=True),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((2, 3)),
    nn.AdaptiveMaxPool2d(2),
    nn.BatchNorm2d(3),
    nn.BatchNorm2d(3, affine=False),
    nn.BatchNorm2d(3, momentum=None),
    nn.BatchNorm2d(3, track_running_stats=False),
]


def with_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    y = nn.ReLU(inplace=True)(y) if not isinstance(module, nn.MaxPool2d) else y
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(g)
    parameters = [p.grad for p in module.parameters()]
    return [y.detach(), x.grad, *parameters]  # type: ignore[list-item]


@pytest.mark.parametrize("module", POOLS, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_modules_give_what_torchs_give_and_keep_the_layout(module: nn.Module, training: bool) -> None:
    ours = deepcopy(module).train(training)
    keep_layout(ours)
    theirs = deepcopy(module).train(training)
    assert isinstance(ours, type(module)) and repr(ours) == repr(theirs)
    for seed in (0, 1):
        x = images_last(3 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + 1)
        found, expected = with_gradients(ours, x), with_gradients(theirs, x.contiguous())
        assert are_last(found[0]) and are_last(found[1])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    assert torch.equal(ours(x.contiguous()), theirs(x.contiguous()))  # another layout goes torch's way
    forget_layout(ours)
    assert type(ours) is type(module)


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize("module", [nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3), nn.MaxPool2d(1)], ids=str)
def test_gradients_of_every_layout_are_read_right(module: nn.Module, size: tuple[int, int]) -> None:
    ours = deepcopy(module)
    keep_layout(ours)
    x = images_last(torch.randn(6, 3, *size))
    for order in permutations(range(4)):
        back = [order.index(axis) for axis in range(4)]
        g = torch.randn(6, 3, *size).permute(order).contiguous().permute(back)
        found, expected = x.clone().requires_grad_(), x.contiguous().double().requires_grad_()
        ours(found).backward(g)
        deepcopy(module).double()(expected).backward(g.contiguous().double())
        torch.testing.assert_close(found.grad, expected.grad, check_dtype=False, rtol=1e-4, atol=1e-5)


def test_a_pool_that_returns_indices_returns_torchs() -> None:
    ours = nn.MaxPool2d(2, return_indices=True)
    keep_layout(ours)
    x = images_last(torch.randn(3, 2, 4, 4))
    for found, expected in zip(ours(x), nn.MaxPool2d(2, return_indices=True)(x), strict=True):
        assert torch.equal(found, expected)


def test_statistics_of_a_channel_of_hardly_any_variance() -> None:
    ours = nn.BatchNorm2d(1)
    keep_layout(ours)
    ours(images_last(torch.full((4, 1, 3, 3), 7.0)))
    assert ours.running_mean is not None and ours.running_var is not None
    assert ours.running_mean.item() == pytest.approx(0.7) and ours.running_var.item() == pytest.approx(0.9)


def test_a_gradient_of_a_gradient_through_batch_norm() -> None:
    def second(module: nn.Module, layout: Any) -> Tensor:
        x = layout(torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
        (first,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    ours = nn.BatchNorm2d(2)
    keep_layout(ours)
    torch.testing.assert_close(
        second(ours, images_last), second(nn.BatchNorm2d(2), Tensor.contiguous), rtol=1e-4, atol=1e-3
    )

"""The layout in which the images of a batch lie side by side: [C, H, W, N] in memory, [N, C, H, W] by its strides.

Compute that takes images as the lanes of a vector has it (`sparse`). ReLU, sums, flattening and linear layers work on
such a tensor and keep the layout; pooling and batch norm of torch would change it, unless they see it as what it also
is: [C, N, H, W] in channels-last.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .devices import HOST


def are_last(x: Tensor) -> bool:
    """Whether a batch [N, ...] of several images has the stride 1 between them, in memory of its own."""
    own = type(x) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    return own and x.dim() > 1 and x.shape[0] > 1 and x.stride(0) == 1


def images_last(x: Tensor) -> Tensor:
    """The batch [N, ...] with the stride 1 between its images: itself, or a copy."""
    if x.shape[0] == 1 or are_last(x):
        return x
    # The other dimensions in the order in which they lie in memory: then it is a matrix that is turned.
    order = sorted(range(1, x.dim()), key=x.stride, reverse=True)
    rows = x.permute(0, *order).reshape(x.shape[0], -1).t().contiguous()
    turned = rows.view(*[x.shape[axis] for axis in order], x.shape[0])
    return turned.permute(len(order), *[order.index(axis) for axis in range(1, x.dim())])


def empty(images: int, *shape: int) -> Tensor:
    """An uninitialised float32 batch [images, *shape] in this layout, in the host's memory."""
    strides = [images * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return torch.empty_strided((images, *shape), (1, *strides), dtype=torch.float32, device=HOST)


class _Own(torch.autograd.Function):
    """A view as a tensor in its own right, in the same memory.

    Writing to a view, as ReLU does in place, has autograd copy gradients to the layout of what it is a view of. Only
    for a view of what nothing else holds: what is written to it is not seen to be written to that.
    """

    @staticmethod
    def forward(ctx: Any, view: Tensor) -> Tensor:
        return _placed(view, view.storage_offset(), view.shape, view.stride())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _placed(memory: Tensor, offset: Any, shape: torch.Size, strides: tuple[int, ...]) -> Tensor:
    """A tensor in this memory that is no view of it."""
    empty = torch.empty(0, dtype=memory.dtype, device=memory.device)
    return empty.set_(memory.untyped_storage(), offset, shape, strides)


def _own(view: Tensor) -> Tensor:
    return cast(Tensor, _Own.apply(view))


def _suits(x: Tensor) -> bool:
    recorded = (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )
    transformed = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return not recorded and not transformed and are_last(x) and x.dim() == 4 and x.permute(1, 2, 3, 0).is_contiguous()


class _Pooling:
    """Mixed into a pooling module of torch: the same results, in the layout of the input."""

    def forward(self, x: Tensor) -> Any:
        pool = super().forward  # type: ignore[misc]
        if not _suits(x) or getattr(self, "return_indices", False):
            return pool(x)
        return _own(pool(x.transpose(0, 1)).transpose(0, 1))


class MaxPool2d(_Pooling, nn.MaxPool2d):
    pass


class AvgPool2d(_Pooling, nn.AvgPool2d):
    pass


class AdaptiveMaxPool2d(_Pooling, nn.AdaptiveMaxPool2d):
    pass


class AdaptiveAvgPool2d(_Pooling, nn.AdaptiveAvgPool2d):
    pass


class _Normalised(torch.autograd.Function):
    """Batch norm of x [N, C, H, W], images last, by the batch; with each channel's mean and 1 / deviation, [C].

    A channel's values are one run in memory, as a group's of torch's group norm are, whose forward pass is the faster.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, channels = _rows(x), x.shape[1]
        y, *both = torch.ops.aten.native_group_norm(rows, weight, bias, 1, channels, rows.shape[2], channels, eps)
        mean, inverse = (each.view(-1) for each in both)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, inverse)
        return _placed(y, 0, x.shape, x.stride()), mean, inverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        asked = None, None, mean, inverse, True, ctx.eps, ctx.needs_input_grad[:3]
        found = torch.ops.aten.native_batch_norm_backward(_rows(grads[0]), _rows(x), weight, *asked)
        images, channels, height, width = x.shape
        of_x = found[0].view(channels, height, width, images).permute(3, 0, 1, 2) if ctx.needs_input_grad[0] else None
        return of_x, found[1], found[2], None


def _rows(x: Tensor) -> Tensor:
    """[1, C, H W N] of x [N, C, H, W], a copy where its images are not last."""
    return x.permute(1, 2, 3, 0).reshape(1, x.shape[1], -1)


class BatchNorm2d(nn.BatchNorm2d):
    """That of torch: the same results but for rounding, in the layout of the input."""

    def forward(self, x: Tensor) -> Tensor:
        if not _suits(x) or x.dtype != torch.float32:
            return super().forward(x)
        if not self.training and self.running_mean is not None:
            images, channels, height, width = x.shape
            told = self.running_mean, self.running_var, self.weight, self.bias
            # In three dimensions: of [1, C, L, 1] torch 2.14 misreads the layout of some gradients (findings/).
            y = F.batch_norm(_rows(x), *told, training=False, eps=self.eps)
            return _own(y.view(channels, height, width, images).permute(3, 0, 1, 2))
        y, mean, inverse = cast(tuple[Tensor, ...], _Normalised.apply(x, self.weight, self.bias, self.eps))
        if self.training and self.running_mean is not None and self.running_var is not None:
            self._follow(mean, inverse, x.numel() // x.shape[1])
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, inverse: Tensor, values: int) -> None:
        """Track the statistics of a batch with so many values a channel."""
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if share is None else share
        variance = (inverse.double().pow(-2) - self.eps).clamp_(min=0) * (values / (values - 1))
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            cast(Tensor, running).lerp_(new.to(torch.float32), share or 0.0)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool2d: MaxPool2d,
    nn.AvgPool2d: AvgPool2d,
    nn.AdaptiveMaxPool2d: AdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d: AdaptiveAvgPool2d,
    nn.BatchNorm2d: BatchNorm2d,
}


def keep_layout(model: nn.Module) -> None:
    """Let the pooling and batch norm modules of torch in a model keep the layout of their input, in place."""
    _change_classes(model, _CLASSES)


def forget_layout(model: nn.Module) -> None:
    """The inverse of `keep_layout`, in place: modules of torch's own again."""
    _change_classes(model, {ours: torchs for torchs, ours in _CLASSES.items()})


def _change_classes(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]

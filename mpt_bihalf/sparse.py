"""Convolutions and linear layers that add and subtract what the kept weights name, and skip the pruned ones.

The weights are -alpha, 0, +alpha with one alpha >= 0 a filter; tensors are float32 in the host's memory. `sparse.cpp`
has the loops and states the order of each sum: it depends on neither the number of threads nor the processor, so the
bits do not. What they give is in the layout of `images_last`.
"""

from __future__ import annotations

import ctypes
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import kernels
from .devices import HOST, host_reads_free
from .images_last import empty, images_last

PAIR = tuple[int, int]


class NotTwoValues(UserWarning):
    """The weight of a layer is not -alpha, 0, +alpha: the layer computes densely."""


def available(device: str = HOST.type) -> bool:
    """Whether this machine can compute so: with the compiled loops, on a processor with AVX2 or AVX-512."""
    library = kernels.compiled()
    return library is not None and hasattr(library, "mpt_convolve") and torch.device(device) == HOST


def why_not(device: str = HOST.type) -> str:
    """A line on what is missing where `available` is False."""
    if torch.device(device) != HOST:
        return f"compute sparse is for the CPU, not {device}: leave it out, or say device {HOST}"
    return "compute sparse needs a processor with AVX2 and the compiled loops (install again with a C++ compiler)"


def suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether a pass with these is one for the loops: float32, in memory, and recorded by autograd alone."""
    return (
        not kernels.recorded()
        and not torch._C._are_functorch_transforms_active()
        and available()
        and all(
            type(tensor) in (Tensor, nn.Parameter)
            and not torch._C._functorch.is_legacy_batchedtensor(tensor)
            and host_reads_free(tensor)
            and tensor.dtype == torch.float32
            and tensor.layout == torch.strided
            and not tensor.is_neg()
            and kernels.plain(tensor.detach())
            for tensor in (x, weight, *([] if bias is None else [bias]))
        )
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() > 0
        and not torch.is_autocast_enabled(HOST.type)
        and torch.autograd.forward_ad._current_level < 0
    )


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: PAIR, padding: PAIR, valued: bool = False
) -> Tensor:
    """alpha conv(x, B) + bias: [N, F, P, Q] of x [N, C, H, W] and the weight alpha * B [F, C, k, k], k = 1 or 3.

    bias: [F] or None. stride: 1 or 2 in both directions. valued: the weight may have any values; else, where it is not
    alpha * B, it is an ordinary convolution of torch, and a `NotTwoValues` warning tells so once.
    """
    return cast(Tensor, _Layer.apply(x, weight, bias, stride, padding, valued))


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """alpha x B^T + bias: [N, F] of x [N, D] and the weight alpha * B [F, D]; otherwise as `convolve`."""
    return cast(Tensor, _Layer.apply(x, weight, bias, None, None, False))


class _Layer(torch.autograd.Function):
    """Either of the two, by whether there is a stride."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: PAIR | None,
        padding: PAIR | None,
        valued: bool,
    ) -> Tensor:
        shape = weight.shape[:1]
        if stride is not None and padding is not None:
            sizes = zip(x.shape[2:], weight.shape[2:], padding, strict=True)
            shape = torch.Size([*shape, *((size + 2 * p - k) // stride[0] + 1 for size, k, p in sizes)])
        y, alpha = empty(len(x), *shape), torch.empty(len(weight), dtype=torch.float32, device=HOST)
        ctx.stride, ctx.padding, ctx.valued = stride, padding, valued
        used, shift = images_last(x), None if bias is None else bias.contiguous()
        geometry = _geometry(used, weight, y, stride, padding, valued)
        ctx.dense = not _call("", stride, used, weight.contiguous(), shift, geometry, alpha, y)
        if ctx.dense:
            told = "a weight is not alpha times -1, 0, 1: its layer computes densely"
            warnings.warn(told, NotTwoValues, stacklevel=4)
            y = F.linear(x, weight, bias) if stride is None else F.conv2d(x, weight, bias, stride, padding or 0)
        ctx.save_for_backward(x, weight, alpha)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        x, weight, alpha = ctx.saved_tensors
        stride, padding, valued, needs = ctx.stride, ctx.padding, ctx.valued, ctx.needs_input_grad[:3]
        # A gradient of this gradient is left to torch.
        if ctx.dense or torch.is_grad_enabled() or not suits(g, weight):
            return (*_dense_backward(g, x, weight, stride, padding, needs), None, None, None)
        g, x, weight = images_last(g), images_last(x), weight.contiguous()
        geometry = _geometry(x, weight, g, stride, padding, valued)
        found: list[Tensor | None] = [None, None, None]
        if needs[0]:
            of_x = empty(*x.shape)
            _call("_back", stride, g, weight, alpha, _geometry(of_x, weight, g, stride, padding, valued), of_x)
            found[0] = of_x
        if needs[1]:
            found[1] = torch.empty_like(weight)
            _call("_weight", stride, x, g, geometry, found[1])
        if needs[2]:
            found[2] = torch.empty_like(alpha)
            _loop("bias_gradient", g, geometry, found[2])
        return (*found, None, None, None)


def _dense_backward(
    g: Tensor, x: Tensor, weight: Tensor, stride: PAIR | None, padding: PAIR | None, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    if stride is None:
        found = (g @ weight if needs[0] else None, g.T @ x if needs[1] else None, g.sum(0) if needs[2] else None)
        return found
    rest = [len(weight)], stride, padding, [1, 1], False, [0, 0], 1, needs
    return cast(tuple[Tensor | None, ...], torch.ops.aten.convolution_backward(g, x, weight, *rest))


def _geometry(x: Tensor, weight: Tensor, y: Tensor, stride: PAIR | None, padding: PAIR | None, valued: bool) -> Any:
    """`Geometry` of sparse.cpp: sizes, and the strides of x and y."""
    kernel, step, (top, left) = (1, 1, (0, 0)) if stride is None else (weight.shape[2], stride[0], padding or (0, 0))
    of_x, of_y = ([*t.shape[1:], 1, 1][:3] for t in (x, y))
    strides = [step for t in (x, y) for step in [*t.stride()[1:], 0, 0][:3]]
    sizes = [len(x), *of_x, *of_y, kernel, step, top, left, *strides, valued]
    return (ctypes.c_int64 * len(sizes))(*sizes)


def _call(name: str, stride: PAIR | None, *arguments: Any) -> int:
    return _loop(("linear" if stride is None else "convolve") + name, *arguments)


def _loop(name: str, *arguments: Any) -> int:
    return cast(int, getattr(kernels.compiled(), "mpt_" + name)(*map(_address, arguments)))


def _address(argument: Any) -> Any:
    if argument is None:
        return None
    return ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, Tensor) else ctypes.byref(argument)

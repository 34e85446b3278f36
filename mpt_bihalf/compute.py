"""How the layers of a binarized model compute: densely, as torch does, or by what the weights keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from . import output_scale, sparse
from .images_last import forget_layout, keep_layout
from .parametrization import BinaryWeight, binary_parts, parametrizations

COMPUTE = ("dense", "sparse")
FEW = 64  # weights of a filter, for a real-valued convolution that is as fast in the layout of the sparse ones
Model = TypeVar("Model", bound=nn.Module)


def set_compute(model: Model, compute: str) -> Model:
    """Let the layers of a binarized model compute by what their weights keep (`sparse`), or as torch does (`dense`).

    In place; returns the model. Under `sparse` each binarized `Linear`, and each `Conv2d` of 1x1 or 3x3 weights, stride
    1 or 2, zero padding and one group, adds and subtracts the inputs that its kept weights name, in float32 on the CPU:
    about as fast as torch at half the weights pruned, several times faster at 90 %. What they give differs from torch's
    by the rounding of sums taken in another order, which depends on neither threads nor processor. Activations then lie
    in memory with the images of the batch side by side. Pooling, batch norm and real-valued convolutions of few weights
    keep that layout: they become subclasses of torch's modules, which give what those give. All else is as before:
    parameters, state dictionaries, hooks, copies.

    A pass goes torch's way where that is not so: other layers, devices and dtypes, mixed precision, traces, graphs of
    `torch.compile`, `torch.func`; and so does a weight that is used without calling its layer.

    Raises ValueError for another word, and for `sparse` on a machine that has not got the compiled loops or AVX2, and
    of a model without a layer that can.
    """
    if compute not in COMPUTE:
        raise ValueError(f"unknown compute {compute!r}; known: {', '.join(COMPUTE)}")
    if compute == "sparse" and not sparse.available():
        raise ValueError(sparse.why_not())
    fitting = [(layer, part) for layer, part in _layers(model) if _fits(layer)]
    if compute == "sparse" and not fitting:
        raise ValueError(
            "no layer can compute sparsely: of a binarized model Linear, and Conv2d of 1x1 or 3x3 weights, can"
        )
    for layer, part in fitting:
        part.compute = compute
        of, ours = ("forward", _linear) if isinstance(layer, nn.Linear) else ("_conv_forward", _convolution)
        setattr(type(layer), of, ours)  # of the class that torch made for this layer alone
    if compute == "sparse":
        keep_layout(model)
        _change_class(model, nn.Conv2d, Conv2d)
    else:
        torchs_modules(model)
    return model


def torchs_modules(model: nn.Module) -> None:
    """Make the modules of torch that `set_compute` changed torch's again, in place; not the binarized layers."""
    forget_layout(model)
    _change_class(model, Conv2d, nn.Conv2d)


def _change_class(model: nn.Module, before: type[nn.Module], after: type[nn.Module]) -> None:
    for module in model.modules():
        if type(module) is before:
            module.__class__ = after


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, BinaryWeight]]:
    return ((model.get_submodule(name), part) for name, part, _ in binary_parts(model))


def _fits(layer: Any) -> bool:
    """Whether the loops are for a layer of this kind, with the forward pass of torch's class."""
    if isinstance(layer, nn.Linear):
        return _as_torch(layer, "forward")
    return (
        isinstance(layer, nn.Conv2d)
        and _as_torch(layer, "forward")
        and _as_torch(layer, "_conv_forward")
        and _pair(layer.kernel_size) in ((1, 1), (3, 3))
        and _pair(layer.stride) in ((1, 1), (2, 2))
        and (_pair(layer.dilation), layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
        and _padding(layer) is not None
    )


def _as_torch(layer: nn.Module, method: str) -> bool:
    """Whether this method of a layer's forward pass does what that of `nn.Linear` or `nn.Conv2d` does."""
    theirs = nn.Linear.forward, nn.Conv2d.forward, nn.Conv2d._conv_forward
    alike = *theirs, output_scale.linear_pass, output_scale.convolution, _linear, _convolution, Conv2d._conv_forward
    return getattr(getattr(layer, method, None), "__func__", None) in alike


def _linear(self: nn.Linear, input: Tensor) -> Tensor:
    weight = self.weight
    fits = _sparse(self) and sparse.suits(input, weight, self.bias)
    if not fits or input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        return output_scale.linear(self, input, weight)
    y = sparse.multiply(input.reshape(-1, weight.shape[1]), weight, self.bias)
    # Of more dimensions as torch lays them out, for whoever views them in others.
    return y if input.dim() == 2 else y.contiguous().view(*input.shape[:-1], len(weight))


def _convolution(self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = _sparse_convolution(self, input, weight, bias, valued=False) if _sparse(self) else None
    return output_scale.convolution(self, input, weight, bias) if y is None else y


class Conv2d(nn.Conv2d):
    """That of torch, of few weights a filter: real-valued ones, in the layout of the sparse layers around it."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = _sparse_convolution(self, input, weight, bias, valued=True)
        return super()._conv_forward(input, weight, bias) if y is None else y


def _sparse_convolution(
    self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None, valued: bool
) -> Tensor | None:
    """What the layer gives, None where the loops are not for it."""
    if not sparse.suits(input, weight, bias):
        return None
    stride, padding = _pair(self.stride), _padding(self)
    single = input.dim() == 3
    x = input[None] if single else input
    if not (
        _fits(self)
        and padding is not None
        and not (valued and weight[0].numel() > FEW and weight.shape[2:] != (1, 1))
        and x.dim() == 4
        and x.shape[1] == weight.shape[1]
        and all(size + 2 * p >= k for size, p, k in zip(x.shape[2:], padding, weight.shape[2:], strict=True))
    ):
        return None
    y = sparse.convolve(x, weight, bias, stride, padding, valued)
    return y[0] if single else y


def _sparse(layer: nn.Module) -> bool:
    return any(getattr(part, "compute", "dense") == "sparse" for part in parametrizations(layer))


def _pair(told: Any) -> tuple[int, int]:
    """One number is for both dimensions: whoever sets it afterwards may have it so."""
    return cast(tuple[int, int], tuple(told) if isinstance(told, tuple | list) else (told, told))


def _padding(layer: nn.Conv2d) -> tuple[int, int] | None:
    """Zeros on either side of rows and of columns; None where the two sides differ."""
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        kernel = layer.kernel_size
        return (kernel[0] // 2, kernel[1] // 2) if all(size % 2 for size in kernel) else None
    return _pair(layer.padding)

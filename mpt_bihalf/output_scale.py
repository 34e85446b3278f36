"""The scale on a layer's output: y = alpha z + bias, z = conv(s, B), in the place of conv(s, alpha B) + bias.

By linearity it is the same function. Where s is binary, z is a whole number: exact in any order of summation, up to
2^24 in float32 and 256 in bfloat16. A sum of alpha B s is not: where values cancel it leaves rounding noise, whose sign
decides what a PReLU, a maximum or a sign behind it gives.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .parametrization import BinaryWeight, parametrizations

NAME = "OutputScale"  # of the module behind a layer


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """B and alpha of a weight in use, alpha * B with one alpha >= 0 a filter: the very values.

    weight: [F, ...]. Returns B in its shape and dtype, and alpha [F], 0 where a filter keeps nothing.
    """
    rows = weight.flatten(1)
    return weight.sign(), torch.maximum(rows.amax(1), -rows.amin(1))


def per_channel(values: Tensor, weight: Tensor) -> Tensor:
    """Values [F], or one for all, so that they broadcast over what the layer of this weight gives."""
    return values.reshape(-1).expand(weight.shape[0]).reshape(-1, *[1] * (weight.dim() - 2))


class _Geometry(NamedTuple):
    """What a convolution is told beside its tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class _OnOutput(torch.autograd.Function):
    """alpha conv(x, B) + bias of a weight alpha * B; backward as conv(x, alpha B) + bias, whose function it is.

    So what the weight gets is the gradient at alpha * B, as the rules of methods take it, also where alpha is 0.
    Inputs: x, the weight, the bias or None, the geometry of a convolution or, for a linear layer, None.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry | None) -> Tensor:
        binary, alpha = split(weight)
        if geometry is None:
            z = F.linear(x, binary)
        else:
            z = torch.convolution(x, binary, None, *geometry[:3], False, [0] * len(geometry.stride), geometry.groups)
        y = z.mul_(per_channel(alpha, weight))
        return y if bias is None else y.add_(per_channel(bias, weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, bias, ctx.geometry = inputs
        ctx.of_bias = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (g,) = grads
        wanted = ctx.needs_input_grad[:3]
        x_then, weight_then = x.to(g.dtype), weight.to(g.dtype)  # that of mixed precision, as layers compute in it
        if ctx.geometry is None:
            rows = g.flatten(0, -2)
            of_x = g @ weight_then if wanted[0] else None
            of_weight = rows.T @ x_then.flatten(0, -2) if wanted[1] else None
            of_bias = rows.sum(0) if wanted[2] else None
        else:
            stride, padding, dilation, groups = ctx.geometry
            of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
                *(g, x_then, weight_then, [len(weight)], stride, padding, dilation),
                *(False, [0] * len(stride), groups, wanted),
            )
        dtypes = x.dtype, weight.dtype, ctx.of_bias
        found = zip((of_x, of_weight, of_bias), dtypes, strict=True)
        return (*(None if grad is None else grad.to(dtype) for grad, dtype in found), None)


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    weight = self.weight
    if not is_on_output(self):
        return F.linear(x, weight, self.bias)
    return _scaled(x[None], weight, self.bias, None)[0] if x.dim() == 1 else _scaled(x, weight, self.bias, None)


def _convolution(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not is_on_output(self):
        return cast(Tensor, _torch_class(self)._conv_forward(self, x, weight, bias))
    padding = self.padding
    if self.padding_mode != "zeros" or padding == "same":
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0,) * len(self.stride)
    elif padding == "valid":
        padding = (0,) * len(self.stride)
    single = x.dim() < weight.dim()
    y = _scaled(x[None] if single else x, weight, bias, _Geometry(self.stride, padding, self.dilation, self.groups))
    return y[0] if single else y


def _scaled(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry | None) -> Tensor:
    if torch.jit.is_tracing():  # which takes no autograd function
        return _OnOutput.forward(x, weight, bias, geometry)
    return cast(Tensor, _OnOutput.apply(x, weight, bias, geometry))


def _torch_class(layer: nn.Module) -> Any:
    return next(kind for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, kind))


def put_on_output(layer: nn.Module, part: BinaryWeight) -> None:
    """Let a binarized layer, whose forward pass is torch's own, have its scale on its output, as `part` says."""
    part.scale_on, part.has_binary_input = "output", True
    kind: Any = type(layer)  # which torch made for this layer alone
    if isinstance(layer, nn.Linear):
        kind.forward = _linear
    else:
        kind._conv_forward = _convolution


def is_on_output(layer: nn.Module) -> bool:
    """Whether a layer's scale is on its output now; not if something else has come between B and the layer."""
    parts = parametrizations(layer)
    return len(parts) > 0 and getattr(parts[-1], "scale_on", "weight") == "output"


def put_scales_behind(model: nn.Module, scales: Mapping[str, Tensor]) -> None:
    """Make each of these plain layers, which hold B, a pair of the layer and of its scale and bias behind it, in place.

    scales: alpha [F], or one for all filters, by the layer's name. The pair is a `Sequential` of `layer` and `scale`,
    the same object as the layer was, so whoever holds that holds the pair; hooks stay on it. All of it is torch's own.
    """
    layers = {model.get_submodule(name): alpha for name, alpha in scales.items()}  # each once, however many its names
    for layer, alpha in layers.items():
        inner = layer.__new__(type(layer))
        vars(inner).update(vars(layer))
        bias, weight = cast(Any, layer).bias, cast(nn.Parameter, layer.weight)
        inner._parameters = {"weight": weight, "bias": None}
        pair = nn.Sequential(OrderedDict(layer=inner, scale=output_scale(alpha, bias, weight))).train(layer.training)
        for held in [name for name in vars(pair) if name.endswith(("_hooks", "_hooks_with_kwargs", "_always_called"))]:
            vars(pair)[held], vars(inner)[held] = vars(layer)[held], vars(pair)[held].copy()
        layer.__class__ = nn.Sequential
        vars(layer).clear()
        vars(layer).update(vars(pair))


def output_scale(alpha: Tensor, bias: Tensor | None, weight: Tensor) -> fx.GraphModule:
    """A module of torch's own that maps z, what the layer of this weight gives, to alpha z + bias in z's dtype.

    alpha, bias: [F], or one for all filters. alpha is a buffer; a bias that is a parameter stays one, of its kind.
    """
    held, graph = nn.Module(), fx.Graph()
    held.register_buffer("alpha", per_channel(alpha.detach(), weight).clone())
    z = graph.placeholder("z")
    y = graph.call_function(operator.mul, (z, graph.get_attr("alpha")))
    if bias is not None:
        held.bias = nn.Parameter(per_channel(bias.detach(), weight).clone(), bias.requires_grad)
        y = graph.call_function(operator.add, (graph.call_method("type_as", (y, z)), graph.get_attr("bias")))
    graph.output(graph.call_method("type_as", (y, z)))
    return fx.GraphModule(held, graph, NAME)


def is_output_scale(module: Any) -> bool:
    """Whether this is a module of `output_scale`, told by what it does, as a copy by pickle has another name."""
    if not isinstance(module, fx.GraphModule):
        return False
    does = [node.target for node in module.graph.nodes if node.op not in ("placeholder", "output")]
    scaled, shifted = ["alpha", operator.mul, "type_as"], ["bias", operator.add, "type_as"]
    return does in (scaled, scaled + shifted)

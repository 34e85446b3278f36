"""The scale on a layer's output: y = alpha z + bias, z = conv(s, B), in the place of conv(s, alpha B) + bias.

By linearity it is the same function. Where s is binary, z is a whole number: exact in any order of summation, up to
2^24 in float32 and 256 in bfloat16. A sum of alpha B s is not: where values cancel it leaves rounding noise, whose sign
decides what a PReLU, a maximum or a sign behind it gives.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .parametrization import BinaryWeight, parametrizations

NAME, BEHIND = "OutputScale", "output_scale"  # what the module behind a layer is called, and where it is


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
    """What a convolution is told beside its tensors, for each dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


# Those that mixed precision knows.
CONVOLUTIONS: dict[int, Any] = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}


class _OnOutput(torch.autograd.Function):
    """alpha conv(x, B) of a weight alpha * B; backward as conv(x, alpha B), whose function it is.

    So what the weight gets is the gradient at alpha * B, as the rules of methods take it, also where alpha is 0.
    Inputs: x, the weight, the geometry of a convolution or, for a linear layer, None.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, geometry: _Geometry | None) -> Tensor:
        binary, alpha = split(weight)
        z = F.linear(x, binary) if geometry is None else CONVOLUTIONS[weight.dim()](x, binary, None, *geometry)
        return cast(Tensor, z.mul_(per_channel(alpha, weight)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (g,) = grads
        of_x, of_weight = ctx.needs_input_grad[:2]
        x_then, weight_then = x.to(g.dtype), weight.to(g.dtype)  # that of mixed precision, as layers compute in it
        if ctx.geometry is None:
            rows = g.flatten(0, -2)
            found = g @ weight_then if of_x else None, rows.T @ x_then.flatten(0, -2) if of_weight else None
        else:
            stride, padding, dilation, groups = ctx.geometry
            rest = None, stride, padding, dilation, False, [0] * len(stride), groups, (of_x, of_weight, False)
            found = torch.ops.aten.convolution_backward(g, x_then, weight_then, *rest)[:2]
        return (*(None if g is None else g.to(to.dtype) for g, to in zip(found, (x, weight), strict=True)), None)


def linear_pass(self: nn.Linear, input: Tensor) -> Tensor:
    return linear(self, input, self.weight)


def linear(self: nn.Linear, input: Tensor, weight: Tensor) -> Tensor:
    """What a linear layer gives with this weight in use, its scale being where it is."""
    if not is_on_output(self):
        return F.linear(input, weight, self.bias)
    y = _scaled(input[None] if input.dim() == 1 else input, weight, self.bias, None)
    return y[0] if input.dim() == 1 else y


def convolution(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a convolution gives with this weight in use, its scale being where it is."""
    if not is_on_output(self):
        return cast(Tensor, _torch_class(self)._conv_forward(self, input, weight, bias))
    x, padding = input, self.padding
    if self.padding_mode != "zeros" or padding == "same":
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), 0
    told = self.stride, 0 if padding == "valid" else padding, self.dilation
    # One number is for all dimensions: whoever sets it afterwards may have it so.
    stride, padding, dilation = (each if isinstance(each, tuple) else (each,) * (weight.dim() - 2) for each in told)
    single = x.dim() < weight.dim()
    y = _scaled(x[None] if single else x, weight, bias, _Geometry(stride, padding, dilation, self.groups))
    return y[0] if single else y


def _scaled(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry | None) -> Tensor:
    # A trace takes no autograd function.
    y = _OnOutput.forward(x, weight, geometry) if torch.jit.is_tracing() else _OnOutput.apply(x, weight, geometry)
    return cast(Tensor, y if bias is None else y + per_channel(bias, weight).to(y.dtype))


def _torch_class(layer: nn.Module) -> Any:
    return next(kind for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, kind))


def put_on_output(layer: nn.Module, part: BinaryWeight) -> None:
    """Let a binarized layer, whose forward pass is torch's own, have its scale on its output, as `part` says."""
    part.scale_on, part.has_binary_input = "output", True
    kind: Any = type(layer)  # which torch made for this layer alone
    if isinstance(layer, nn.Linear):
        kind.forward = linear_pass
    else:
        kind._conv_forward = convolution


def is_on_output(layer: nn.Module) -> bool:
    """Whether a layer's scale is on its output now.

    Not if something else has come between B and the layer, nor if its bias is computed.
    """
    parts = parametrizations(layer)
    return bool(parts) and getattr(parts[-1], "scale_on", "weight") == "output" and "bias" in layer._parameters


def put_scales_behind(model: nn.Module, scales: Mapping[str, Tensor]) -> None:
    """Put a scale, and the bias, behind each of these plain layers, which hold B, in place.

    scales: alpha [F], or one for all filters, by the layer's name. What the layer gives goes through its `output_scale`
    first, by a forward hook, and then to other hooks. All of it is torch's own, and the bias the same parameter.
    """
    layers = {model.get_submodule(name): alpha for name, alpha in scales.items()}  # each once, however many its names
    for layer, alpha in layers.items():
        scale = output_scale(alpha, cast(Any, layer).bias, cast(Tensor, layer.weight))
        layer._parameters["bias"] = None
        layer.add_module(BEHIND, scale)
        layer.register_forward_hook(scale, prepend=True)


def take_scales_off(model: nn.Module, names: Iterable[str]) -> None:
    """The inverse of `put_scales_behind`, in place, of those of these layers that have a scale."""
    alphas = {}
    for layer in {model.get_submodule(name) for name in names}:
        scale = remove_scale(layer)
        if scale is not None:
            weight = cast(nn.Parameter, layer.weight)
            alphas[weight] = scale.alpha.reshape(-1, *[1] * (weight.dim() - 1))  # once, if layers share it
            layer._parameters["bias"] = bias_of(scale)
    for weight, alpha in alphas.items():
        weight.data = weight.detach() * alpha


def bias_of(scale: fx.GraphModule) -> nn.Parameter | None:
    return scale._parameters.get("bias")


def remove_scale(layer: nn.Module) -> Any:
    """Take the scale from behind a plain layer, and return it; None where there is none."""
    scale = scale_behind(layer)
    if scale is not None:
        del layer._modules[BEHIND]
        for key in [key for key, hook in layer._forward_hooks.items() if hook is scale]:
            del layer._forward_hooks[key]
    return scale


def output_scale(alpha: Tensor, bias: nn.Parameter | None, weight: Tensor, hook: bool = True) -> fx.GraphModule:
    """A module of torch's own for what the layer of this weight gives, z: alpha z + bias, in z's dtype.

    alpha, bias: [F], or alpha one for all. alpha is a buffer that broadcasts over z, the bias stays as it is.
    hook: whether it takes what a forward hook is given, the layer, its inputs and z, or z alone.
    """
    held, graph = nn.Module(), fx.Graph()
    held.register_buffer("alpha", per_channel(alpha.detach(), weight).clone())
    held.register_parameter("bias", bias)
    *_, z = [graph.placeholder(name) for name in (("layer", "inputs", "z") if hook else ("z",))]
    y = graph.call_function(operator.mul, (z, graph.get_attr("alpha")))
    y = graph.call_method("type_as", (y, z))
    if bias is not None:
        shift = graph.call_method("view", (graph.get_attr("bias"), -1, *[1] * (weight.dim() - 2)))
        y = graph.call_function(operator.add, (y, graph.call_method("type_as", (shift, z))))
    graph.output(y)
    return fx.GraphModule(held, graph, NAME)


def scale_behind(layer: nn.Module) -> Any:
    """The scale behind a plain layer, None where there is none."""
    scale = layer._modules.get(BEHIND)
    return scale if is_output_scale(scale) else None


def is_output_scale(module: Any) -> bool:
    """Whether this is a module of `output_scale`, told by what it does, as a copy by pickle has another name."""
    if not isinstance(module, fx.GraphModule):
        return False
    does = [node.target for node in module.graph.nodes if node.op not in ("placeholder", "output")]
    scaled, shifted = ["alpha", operator.mul, "type_as"], ["bias", "view", "type_as", operator.add]
    return does in (scaled, scaled + shifted)

"""Scales on what a layer gives that are no part of its weight: factors that depend on the place, or on the input.

They are modules of the network. `create_model` puts them round the layers that binary activations feed, and users may
put them into networks of their own: `InputScaled(BinaryActivation(), ScaledOutput(conv, Gamma(4, filters, size)))`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import prod
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OutputScale: TypeAlias = Callable[[int, tuple[int, ...]], nn.Module]
CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Gamma(nn.Module):
    """y = Gamma z for each image, Gamma [F, H, V] trained and beginning at 1 (XNOR-Net++, Bulat & Tzimiropoulos 2019).

    case: 1: Gamma[o, i, j] = a[o]; 2: a[o, i, j]; 3: a[o] b[i, j]; 4: a[o] b[i] c[j], so F, F H V, F + H V or F + H + V
    parameters. size: H, V of what the layer gives, or none for a linear layer, where each case is a[o].

    z: [N, F, H, V] or [N, F], any float dtype, which y has too. Raises ValueError for z of another size: but for case 1
    the scale is for images of one size.
    """

    size: tuple[int, ...]

    def __init__(self, case: int, filters: int, size: Iterable[int] = ()) -> None:
        super().__init__()
        if case not in (1, 2, 3, 4):
            raise ValueError(f"case must be 1, 2, 3 or 4, not {case}")
        self.case, self.filters = case, filters
        places = self.size = tuple(size)
        if min((filters, *places)) < 1:
            raise ValueError(f"a scale of {filters} filters and {places} places has no number")
        shapes: list[tuple[int, ...]] = [(filters, *places) if case == 2 else (filters,)]
        if places and case > 2:
            shapes += [places] if case == 3 else [(side,) for side in places]
        for name, shape in zip("abcd", shapes, strict=False):
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))

    def gamma(self) -> Tensor:
        """Gamma, [F, H, V], or 1 in the place of H and V where it does not depend on them."""
        a, *rest = self.parameters()
        found = a if a.dim() > 1 else a.view(-1, *[1] * len(self.size))
        for dimension, factor in enumerate(rest):
            after = 0 if self.case == 3 else len(self.size) - 1 - dimension
            found = found * factor.view(*factor.shape, *[1] * after)
        return found

    def forward(self, z: Tensor) -> Tensor:
        given = tuple(z.shape[1:])
        if given != (self.filters, *self.size) and not (self.case == 1 and given[:1] == (self.filters,)):
            of, here = (" x ".join(map(str, shape)) for shape in (given, (self.filters, *self.size)))
            raise ValueError(f"a layer gives {of} numbers an image, and its scale gamma-{self.case} is for {here}")
        return (z * self.gamma()).type_as(z)

    def extra_repr(self) -> str:
        return f"{self.case}, {self.filters}, {self.size}"


OUTPUT_SCALES: dict[str, OutputScale] = {f"gamma-{case}": partial(Gamma, case) for case in (1, 2, 3, 4)}


class ScaledOutput(nn.Module):
    """A layer and a scale behind it, y = scale(z) + bias. `binarize_weights` then learns no other scale for the layer.

    layer: a convolution or linear layer, whose bias this takes over, so that it gives z.
    """

    bias: Tensor | None

    def __init__(self, layer: nn.Module, scale: nn.Module) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale
        self.ones = [1] * (cast(Tensor, layer.weight).dim() - 2)  # for each dimension of a map
        self.register_parameter("bias", layer._parameters["bias"])
        layer._parameters["bias"] = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(self.layer(x))
        if self.bias is not None:
            y = y + self.bias.view(-1, *self.ones).type_as(y)
        return cast(Tensor, y)


class InputScaled(nn.Module):
    """y = K layer(sign(x)), K the mean of abs(x) over channels and each window (XNOR-Net, Rastegari et al. 2016).

    K = box(mean_c abs(x)), the box with the convolution's kernel, stride, padding and dilation, the zeros of the
    padding counted among its places; of a linear layer the mean of abs(x) of each sample. It is a constant in the
    backward pass.

    activation: what gives sign(x). layer: a convolution with zeros for padding, a linear layer, or such a one in a
    `ScaledOutput`. ValueError for others, and for one with a bias, which comes behind K.
    """

    def __init__(self, activation: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.activation, self.layer = activation, layer
        inner: Any = layer.layer if isinstance(layer, ScaledOutput) else layer
        if layer.bias is not None:
            raise ValueError("a layer under an input scale has no bias: what is added comes behind the scale")
        self.kernel: tuple[int, ...] = ()
        self.geometry: tuple[Any, ...] = ()
        if not isinstance(inner, nn.Linear):
            if inner.padding_mode != "zeros":
                raise ValueError(f"an input scale is for padding by zeros, not {inner.padding_mode!r}")
            self.kernel = tuple(inner.kernel_size)
            self.geometry = inner.stride, inner.padding, inner.dilation

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(self.activation(x)) * self.input_scale(x.detach()))

    def input_scale(self, x: Tensor) -> Tensor:
        """K of x, [N, 1, H, V] for what a convolution gives, [N, 1] for a linear layer; in x's dtype."""
        if not self.kernel:
            return x.abs().mean(-1, keepdim=True)
        mean = x.abs().mean(1, keepdim=True)
        box = mean.new_full((1, 1, *self.kernel), 1 / prod(self.kernel))
        return cast(Tensor, CONVOLUTIONS[len(self.kernel)](mean, box, None, *self.geometry))


class Gated(nn.Module):
    """y = G layer(sign(u)), G = sigmoid(A2 relu(A1 mean_ij u)) (Real-to-Binary, Martinez et al. 2020).

    The gate sees the input before its sign, and scales each filter of each image. A1 [C / 8, C] and A2 [F, C / 8] are
    trained and begin He normal, without biases; C / 8 is rounded down, and at least 1.

    activation: what gives sign(u), u [N, C, ...]. layer: a convolution or linear layer without a bias.
    """

    def __init__(self, activation: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        if layer.bias is not None:
            raise ValueError("a layer under a gate has no bias: what is added comes behind the gate")
        self.activation: nn.Module = activation
        self.layer: nn.Module = layer
        weight = cast(Tensor, layer.weight)
        filters, inputs = len(weight), weight.shape[1] * cast(int, getattr(layer, "groups", 1))
        inner = max(1, inputs // 8)
        self.squeeze: Tensor = nn.Parameter(torch.empty(inner, inputs))
        self.excite: Tensor = nn.Parameter(torch.empty(filters, inner))
        for matrix in (self.squeeze, self.excite):
            nn.init.kaiming_normal_(matrix)
        self.places: tuple[int, ...] = tuple(range(2, weight.dim()))

    def forward(self, u: Tensor) -> Tensor:
        z: Tensor = self.layer(self.activation(u))
        mean = u.mean(self.places) if self.places else u
        gate = F.linear(F.linear(mean, self.squeeze).relu(), self.excite).sigmoid()
        for _ in self.places:
            gate = gate.unsqueeze(-1)
        return z * gate.type_as(z)


def scaled_elsewhere(model: nn.Module) -> set[nn.Module]:
    """The layers of a network that have a scale behind them as a module."""
    return {module.layer for module in model.modules() if isinstance(module, ScaledOutput)}


def output_scales(model: nn.Module) -> Iterator[nn.Parameter]:
    """What the scales behind layers learn."""
    for module in model.modules():
        if isinstance(module, ScaledOutput):
            yield from module.scale.parameters()

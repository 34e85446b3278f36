"""What a network is built for, the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..activations import BinaryActivation, Estimator
from ..counts import round_half_up
from ..scale_modules import InputScaled

__all__ = ["Design", "Network"]


@dataclass(frozen=True)
class Design:
    """Images of `[in_channels, *image_size]` in, logits of num_classes out.

    width: what all hidden channel counts are multiplied by.
    estimator: the gradient of binary activations (W/A 1/1); None for real-valued ones (W/A 1/32).
    block: what stands around a binary layer, one of `BLOCKS`; empty: as the network has it.
    input_scale: whether such a layer's output is multiplied by the mean magnitude of its inputs (`InputScaled`).
    """

    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
    width: float = 1.0
    estimator: Estimator | None = None
    block: str = ""
    input_scale: bool = False

    @property
    def binary(self) -> bool:
        """Whether activations are binary."""
        return self.estimator is not None

    def channels(self, count: int) -> int:
        """So many hidden channels as `count` are at width 1: round_half_up(width * count), at least 1."""
        return max(1, round_half_up(self.width, count))

    def before_layer(self) -> nn.Module:
        """What stands before a convolution or linear layer in the hidden part: sign if activations are binary.

        With an input scale nothing does, as the sign is in what `scaled` gives.
        """
        return nn.Identity() if self.estimator is None or self.input_scale else BinaryActivation(self.estimator)

    def scaled(self, layer: nn.Module) -> nn.Module:
        """A layer that `before_layer` stands before, with the input scale if there is one."""
        return InputScaled(BinaryActivation(self.estimator), layer) if self.input_scale and self.estimator else layer

    def after_layer(self) -> nn.Module:
        """What stands after one and its batch norm: ReLU, or nothing before a sign, which would be constant."""
        return nn.Identity() if self.binary else nn.ReLU(inplace=True)


# What stands around a layer with binary input: batch norm and sign before it and PReLU behind (XNOR-Net, XNOR-Net++,
# Real-to-Binary), so that its scale counts; or batch norm behind it and no PReLU (Bi-Real net's own).
BLOCKS = ("norm-first", "bi-real")
# What may stand around such a layer, by the arguments of `create_model`, and the values at which nothing does.
AROUND = {"block": "", "output_scale": "none", "input_scale": False}


class Network(NamedTuple):
    """An entry of `MODELS`: how the network is built, and which of its layers stay real-valued by default.

    image_size: one that suits it, in pixels, for where that of the data is not known.
    sparse_from: the pruning rate from which it is the faster for computing by what its weights keep, as measured; 1:
        none is known.
    blocks: those of `BLOCKS` that it can be built of, beside its own. With any it can have an input
        scale too.
    """

    build: Callable[[Design], nn.Module]
    skip: tuple[str, ...] = ("first", "last", "downsample")
    image_size: int = 64
    sparse_from: float = 1.0
    blocks: tuple[str, ...] = ()

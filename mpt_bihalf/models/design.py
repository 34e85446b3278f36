"""What a network is built for, the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor, nn

from ..activation_modules import Activation, SignTerms
from ..counts import round_half_up
from ..scale_modules import Gated, InputScaled

__all__ = ["Design", "Network"]


@dataclass(frozen=True)
class Design:
    """Images of `[in_channels, *image_size]` in, logits of num_classes out.

    width: what all hidden channel counts are multiplied by.
    activation: how inputs become binary (W/A 1/1); None for real-valued ones (W/A 1/32).
    block: what stands around a binary layer, one of `BLOCKS`; empty: as the network has it.
    input_scale: whether such a layer's output is multiplied by the mean magnitude of its inputs (`InputScaled`).
    """

    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
    width: float = 1.0
    activation: Activation | None = None
    block: str = ""
    input_scale: bool = False

    @property
    def binary(self) -> bool:
        """Whether activations are binary."""
        return self.activation is not None

    @property
    def norm_first(self) -> bool:
        """Whether batch norm stands before a binary layer, and PReLU behind it."""
        return self.block in NORM_FIRST

    def channels(self, count: int) -> int:
        """So many hidden channels as `count` are at width 1: round_half_up(width * count), at least 1."""
        return max(1, round_half_up(self.width, count))

    def before_layer(self, channels: int = 0) -> nn.Module:
        """What stands before a convolution or linear layer in the hidden part: sign if activations are binary.

        Nothing does where the sign is in what `around` gives. channels: of the input, for activations that know them.
        """
        if self.activation is None or self._wraps:
            return nn.Identity()
        return self.activation.sign(channels)

    def around(self, layer: nn.Module) -> nn.Module:
        """A layer that `before_layer` stands before, with what of the design needs its input before the sign."""
        if self.activation is None or not self._wraps:
            return layer
        if self.activation.terms:
            return SignTerms(self.activation.terms, layer)
        sign = self.activation.sign(cast(Tensor, layer.weight).shape[1])
        return Gated(sign, layer) if self.block == "real-to-binary" else InputScaled(sign, layer)

    @property
    def _wraps(self) -> bool:
        """Whether layers see their input before the sign."""
        terms = self.activation is not None and bool(self.activation.terms)
        return terms or self.input_scale or self.block == "real-to-binary"

    def after_layer(self) -> nn.Module:
        """What stands after one and its batch norm: ReLU, or nothing before a sign, which would be constant."""
        return nn.Identity() if self.binary else nn.ReLU(inplace=True)


# What stands around a layer with binary input. norm-first: batch norm and sign before it and PReLU behind (XNOR-Net,
# XNOR-Net++), so that its scale counts; real-to-binary: likewise, with a gate; bi-real: batch norm behind it and no
# PReLU; reactnet: batch norm behind it and RPReLU behind the addition.
BLOCKS = ("norm-first", "real-to-binary", "bi-real", "reactnet")
NORM_FIRST = BLOCKS[:2]
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

"""Binary activations that are more than a sign: modules that know their channels, or the input before the sign.

Sign terms: the input of a layer as a sum of signs, each with a scale of its sample, x ~ v_1 s_1 + v_2 s_2 (Pouransari
et al. 2020). A rule maps x [N, ...] to the scales v_i >= 0, each [N], of s_1 = sign(x), s_2 = sign(x - v_1 s_1) and so
on, which are constants in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .activations import ACTIVATION_GRADIENTS, BinaryActivation, Estimator, find_estimator
from .gradients import within

Terms: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]
RANGE = 2.0  # what x is clipped to, in units of its batch norm


@dataclass(frozen=True)
class Residual:
    """v_i = mean abs(r_i) of what the terms before leave, r_1 = x, r_i+1 = r_i - v_i sign(r_i) (HORQ, Li et al. 2017).

    terms: how many, from 1: `ls1` of least squares is one of them, of order two HORQ's.
    """

    terms: int = 1

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise ValueError(f"a sum of signs has at least 1 term, not {self.terms}")

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        rest, scales = _magnitudes(x), []
        for _ in range(self.terms):
            scales.append(rest.mean(1))
            # What is left of a negative value is that of its magnitude with the other sign.
            rest = (rest - scales[-1][:, None]).abs()
        return tuple(scales)


def two_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """The v_1, v_2 with the least error: v_1 - v_2 and v_1 + v_2 are the 2-means of abs(x), each split of it tried."""
    ordered, sums, counts, total = _sorted(x)
    size = ordered.shape[1]
    if size == 1:
        return ordered[:, 0], torch.zeros_like(ordered[:, 0])
    # Of a split behind the k lowest the error is the sum of squares less k low^2 + (M - k) high^2.
    low, high = sums[:, :-1], total - sums[:, :-1]
    gain = low.square() / counts[:-1] + high.square() / (size - counts[:-1])
    split = gain.argmax(1, keepdim=True)
    below, k = low.gather(1, split)[:, 0], counts[:-1].expand_as(gain).gather(1, split)[:, 0]
    first, second = below / k, (total[:, 0] - below) / (size - k)
    return (first + second) / 2, (second - first) / 2


def ternary(x: Tensor) -> tuple[Tensor, Tensor]:
    """The v_1 = v_2 = v with the least error: abs(x) is 0 below a split and 2 v from it on, each split tried."""
    ordered, sums, counts, total = _sorted(x)
    low = torch.cat([torch.zeros_like(total), sums[:, :-1]], 1)
    left = ordered.shape[1] - counts + 1  # M to 1 of the highest
    split = ((total - low).square() / left).argmax(1, keepdim=True)
    v = ((total - low).gather(1, split) / left.expand_as(low).gather(1, split))[:, 0] / 2
    return v, v


def _magnitudes(x: Tensor) -> Tensor:
    """abs(x) as rows [N, M], in float32 or wider."""
    return x.detach().abs().flatten(1).to(torch.promote_types(x.dtype, torch.float32))


def _sorted(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Magnitudes in ascending order, their running sums, how many these are of, and the sum of all [N, 1]."""
    ordered = _magnitudes(x).sort(1).values
    sums = ordered.cumsum(1)
    counts = torch.arange(1, ordered.shape[1] + 1, device=x.device, dtype=ordered.dtype)
    return ordered, sums, counts, sums[:, -1:]


SIGN_TERMS: dict[str, Terms] = {
    "ls1": Residual(1),
    "ls2": two_means,
    "lsT": ternary,
    **{f"residual-{k}": Residual(k) for k in (2, 3, 4)},
}


class SignTerms(nn.Module):
    """y = sum_i v_i layer(s_i): a layer under inputs that are a sum of signs, so that each layer(s_i) is of signs.

    x is clipped to -2 and 2 first. Each sign passes its gradient where its argument is within [-1, 1].

    rule: a name in `SIGN_TERMS`, or one of your own. layer: a convolution or linear layer. ValueError for one with a
    bias, which would be added with each term.
    """

    def __init__(self, rule: str | Terms, layer: nn.Module) -> None:
        super().__init__()
        if getattr(layer, "bias", None) is not None:
            raise ValueError("a layer under several terms has no bias: what is added comes behind their sum")
        if isinstance(rule, str) and rule not in SIGN_TERMS:
            raise ValueError(f"unknown sign terms {rule!r}; known: {', '.join(SIGN_TERMS)}")
        self.rule = SIGN_TERMS[rule] if isinstance(rule, str) else rule
        self.sign, self.layer = BinaryActivation("clip-closed"), layer
        self._unbatched = cast(Tensor, layer.weight).dim() - 1

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == self._unbatched:
            return cast(Tensor, self(x.unsqueeze(0)).squeeze(0))
        x = _Clip.apply(x)
        rest, y = x, None
        for v in self.rule(x):
            scale = v.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
            s = self.sign(rest)
            term = scale * self.layer(s)
            y = term if y is None else y + term
            rest = rest - scale * s
        return cast(Tensor, y)


class _Clip(torch.autograd.Function):
    """x within -2 and 2; backward g there, the bounds included, whatever torch's clamp has at them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(-RANGE, RANGE)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return within(grads[0], x, RANGE, closed=True)


class ChannelShift(nn.Module):
    """x + b, b [C] trained and beginning at 0: before a sign, ReActNet's RSign (Liu et al. 2020). x: [N, C, ...]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return _plus(x, self.bias)


class RPReLU(nn.Module):
    """x - c + z where x > c, else s (x - c) + z: ReActNet's activation (Liu et al. 2020). x: [N, C, ...].

    c, z [C] begin at 0, s [C] at 0.25; all are trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.after = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
        self.weight = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return _plus(F.prelu(_plus(x, -self.before), self.weight), self.after)


class SampleStandard(nn.Module):
    """Each sample with mean 0 and unbiased deviation 1 over all its values, differentiated through (RBNN's code).

    A sample of equal values, or of one, is 0, without a gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        return standard_samples(x)


@fx.wrap
def standard_samples(x: Tensor) -> Tensor:
    """See `SampleStandard`; one node of a trace, in which a tensor does not tell its dimensions."""
    rows = x.flatten(1)
    mean, deviation = rows.mean(1), rows.std(1, correction=min(rows.shape[1] - 1, 1))
    equal = rows.amax(1) == rows.amin(1)
    of_samples = [-1] + [1] * (x.dim() - 1)
    around = x - mean.view(of_samples)  # in the memory format of x, which masked_fill would not keep
    scaled = around / torch.where(equal, 1, deviation).view(of_samples)
    return torch.where(equal.view(of_samples), 0, scaled)


def _plus(x: Tensor, values: Tensor) -> Tensor:
    """x [N, C, ...] with values [C] added; a trace need not know how many dimensions x has."""
    return (x.transpose(1, -1) + values).transpose(1, -1)


@dataclass(frozen=True)
class Activation:
    """How a layer's input becomes binary.

    estimator: the gradient of the sign. before: for so many channels, the module before the sign. terms: the name of
    its sign terms in `SIGN_TERMS`, where it is more than one sign; these have an estimator of their own.
    """

    estimator: Estimator
    before: Callable[[int], nn.Module] | None = None
    terms: str = ""

    def sign(self, channels: int) -> nn.Module:
        """What gives the sign of an input of so many channels."""
        sign = BinaryActivation(self.estimator)
        return sign if self.before is None else nn.Sequential(self.before(channels), sign)


def _standard(channels: int) -> nn.Module:
    return SampleStandard()


ACTIVATIONS: dict[str, Activation] = {
    "rsign": Activation(ACTIVATION_GRADIENTS["approx"], ChannelShift),
    "rbnn": Activation(ACTIVATION_GRADIENTS["rbnn"], _standard),
    **{name: Activation(ACTIVATION_GRADIENTS["clip-closed"], terms=name) for name in SIGN_TERMS},
}


def find_activation(activation: str | Estimator | Activation) -> Activation:
    """That of this name, or of the estimator of this name, or the given one; ValueError with the known names else."""
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str) and activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    if isinstance(activation, str) and activation not in ACTIVATION_GRADIENTS:
        known = ", ".join(dict.fromkeys([*ACTIVATION_GRADIENTS, *ACTIVATIONS]))
        raise ValueError(f"unknown activations {activation!r}; known: {known}")
    return Activation(find_estimator(activation))

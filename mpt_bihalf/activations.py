"""Binary activations: sign forward, and backward one of the estimators of its gradient.

An estimator maps (g, x, progress) to dL/dx, with x the input, g = dL/d sign(x) and progress = epoch / epochs. One that
has a `threshold` is of the sign of x - threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from . import kernels
from .gradients import Ede, Rbnn, Swish, within

Estimator: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]


def clip(g: Tensor, x: Tensor, progress: float) -> Tensor:
    """dL/dx = g where abs(x) < 1, else 0 (Courbariaux et al. 2016; Rastegari et al. 2016)."""
    return cast(Tensor, torch.ops.aten.hardtanh_backward(g, x, -1, 1))


def approx(g: Tensor, x: Tensor, progress: float) -> Tensor:
    """dL/dx = g (2 - 2 abs(x)) where abs(x) < 1, else 0: of a piecewise quadratic (Bi-Real net, Liu et al. 2018)."""
    return x.abs().mul_(-2).add_(2).relu_() * g


@dataclass(frozen=True)
class EdeActivation:
    """dL/dx = g c t (1 - tanh(t x)^2), t and c as those of `gradients.Ede` (IR-Net, Qin et al. 2020).

    t0: where t starts, above 0.
    """

    t0: float = Ede.t0

    def __call__(self, g: Tensor, x: Tensor, progress: float) -> Tensor:
        t = Ede(self.t0).sharpness(progress)
        # 1 - tanh(y)^2 = 4 s (1 - s) with s the sigmoid of 2 y; in one pass with the product.
        gate = x.mul(2 * t).sigmoid_()
        return cast(Tensor, torch.ops.aten.sigmoid_backward(g, gate)).mul_(4 * max(1 / t, 1) * t)


@dataclass(frozen=True)
class SwishActivation:
    """dL/dx = g SS'(x), as `gradients.Swish` has it (BNN+, Darabi et al. 2018). b: how sharp, above 0."""

    b: float = Swish.b

    def __call__(self, g: Tensor, x: Tensor, progress: float) -> Tensor:
        return Swish(self.b).slope(x) * g


@dataclass(frozen=True)
class AbcActivation:
    """A sign of x - threshold, and dL/dx = g where 0 <= x <= 1 (ABC-Net with one base, Lin et al. 2017).

    That is the sign of clip(x, 0, 1) at 1/2: of normal x 30.9 % are +1.
    """

    threshold: float = 0.5

    def __call__(self, g: Tensor, x: Tensor, progress: float) -> Tensor:
        return torch.where((x >= 0) & (x <= 1), g, 0)


def clip_closed(g: Tensor, x: Tensor, progress: float) -> Tensor:
    """dL/dx = g where abs(x) <= 1, else 0: that of each sign term of least squares (Pouransari et al. 2020)."""
    return within(g, x, 1.0, closed=True)


@dataclass(frozen=True)
class RbnnActivation:
    """dL/dx = g max(0, sqrt(2) t - t^2 abs(x)), t = max(1, 10^(-2 + 3 progress)) (RBNN's code, Lin et al. 2020)."""

    def __call__(self, g: Tensor, x: Tensor, progress: float) -> Tensor:
        return Rbnn.slope(x, max(1.0, Rbnn.sharpness(progress))).mul_(g)


ACTIVATION_GRADIENTS: dict[str, Estimator] = {
    "clip": clip,
    "clip-closed": clip_closed,
    "approx": approx,
    "ede": EdeActivation(),
    "swish": SwishActivation(),
    "abc": AbcActivation(),
    "rbnn": RbnnActivation(),
}


class BinaryActivation(nn.Module):
    """sign(x), with sign(0) = +1, in the shape, dtype and memory format of x; backward by the estimator.

    threshold: of an estimator that has one, what x is compared with in the place of 0.
    progress: how far the training is (`set_progress`), for estimators with a schedule.
    """

    threshold = 0.0

    def __init__(self, estimator: str | Estimator = "clip") -> None:
        super().__init__()
        self.estimator = find_estimator(estimator)
        self.threshold = float(getattr(self.estimator, "threshold", 0.0))
        self.progress = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting() or torch.jit.is_tracing():
            return _sign(x, self.threshold)
        else:  # which TorchScript leaves out
            sign = _SignInGraph if torch.compiler.is_compiling() else _Sign
            return cast(Tensor, sign.apply(x, self.estimator, self.progress, self.threshold))

    def extra_repr(self) -> str:
        known = {value: name for name, value in ACTIVATION_GRADIENTS.items()}
        return known.get(self.estimator, repr(self.estimator))


def find_estimator(estimator: str | Estimator) -> Estimator:
    """The estimator of this name, or the given one itself; ValueError with the known names otherwise."""
    if not isinstance(estimator, str):
        return estimator
    if estimator not in ACTIVATION_GRADIENTS:
        raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(ACTIVATION_GRADIENTS)}")
    return ACTIVATION_GRADIENTS[estimator]


def _sign(x: Tensor, threshold: float) -> Tensor:
    return torch.where(x >= threshold, x.new_ones(()), x.new_full((), -1))


class _SignInGraph(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, estimator: Estimator, progress: float, threshold: float) -> Tensor:
        return _sign(x, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.estimator, ctx.progress, _ = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return ctx.estimator(grads[0], x, ctx.progress), None, None, None


class _Sign(_SignInGraph):
    """With a faster pass, and a word for forward mode, either of which torch.compile would not trace."""

    @staticmethod
    def forward(x: Tensor, estimator: Estimator, progress: float, threshold: float) -> Tensor:
        if not kernels.plain(x):
            return _sign(x, threshold)
        return torch.ge(x, threshold, out=torch.empty_like(x)).mul_(2).sub_(1)  # a fifth of the time of torch.where

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError("an estimator is a rule for the backward pass: take torch.func.jacrev, not jacfwd")

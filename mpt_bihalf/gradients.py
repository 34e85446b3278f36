"""Straight-through rules: what a latent weight or a score gets of the loss gradient at the weight in use.

With w = alpha * B the weight in use and g = dL/dw, a rule maps (g, layer, positive, alpha) to the gradient of the
trained tensor, in its shape, for every weight, kept or pruned. `positive` is True where b, the sign or would-be sign,
is +1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TypeAlias, cast

import torch
from torch import Tensor

from . import kernels
from .filters import few_filters, filters, wide_rows
from .layer import Layer
from .selection import count_kept

Gradient: TypeAlias = Callable[[Tensor, Layer, Tensor, Tensor], Tensor]


def scaled(g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
    """dL/dW = alpha g, no clipping (the bi-half authors' code)."""
    if kernels.plain(g) and layer.weight.is_contiguous():  # else its layout would have to be changed again
        return torch.mul(alpha, g, out=torch.empty(g.shape, dtype=g.dtype, device=g.device))
    return alpha * g


def unscaled(g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
    """dL/dW = g."""
    return g


@dataclass(frozen=True)
class Clipped:
    """dL/dW = alpha g where abs(W) < 1, else 0 (Bi-Real net, Liu et al. 2018).

    closed: also where abs(W) = 1. scaled: False for g in the place of alpha g (Bi-Real's and ReActNet's PyTorch code).
    """

    closed: bool = False
    scaled: bool = True

    def __call__(self, g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
        return _within(g, layer, positive, alpha if self.scaled else alpha.new_ones(()), self.closed)


def of_learned_scale(g: Tensor, layer: Layer, positive: Tensor) -> Tensor:
    """dL/da = sign(a) sum_f(g B) of a `scales.Learned`, alpha = abs(a): [F, 1, ...]. sign(0) = +1."""
    assert layer.alpha is not None, "this layer has no learned scale"
    along = _along(g, layer, positive)
    return torch.where(layer.alpha >= 0, along, -along)


def _along(g: Tensor, layer: Layer, positive: Tensor) -> Tensor:
    """sum_f(g B), [F, 1, ...] in g's dtype."""
    sums = kernels.signed_sums(g.contiguous(), positive, layer.kept)
    return sums.to(g.dtype).view(-1, *[1] * (g.dim() - 1))


def xnor(g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
    """dL/dW = alpha g 1[abs(W) < 1] + M sign(W) / n_f sum_f(g B): alpha is differentiated too.

    Exact for the scale `l1-filter` under the binarizer `sign` (XNOR-Net, Rastegari et al. 2016, whose formula and code
    lack the sum). n_f: the kept weights of the filter; sign(0) = +1, as of B.
    """
    along = _along(g, layer, positive)
    if layer.kept is None:
        share = along / max(1, g.numel() // max(1, len(g)))
    else:
        share = along / count_kept(filters(layer.kept)).clamp(min=1).view_as(along).to(g.dtype)
    return _within(g, layer, positive, alpha, share=share)


@dataclass(frozen=True)
class Swish:
    """dL/dW = alpha g SS'(W), of the sign-swish SS(x) = 2 s (1 + b x (1 - s)) - 1, s = sigmoid(b x) (Darabi et al.).

    SS'(x) = b (2 - b x tanh(b x / 2)) / (1 + cosh(b x)): below 0 beyond b abs(x) = 2.4. b: how sharp, above 0.
    """

    b: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.b < float("inf"):
            raise ValueError(f"b must be a finite number above 0, not {self.b}")

    def slope(self, x: Tensor) -> Tensor:
        """SS'(x), in the shape and dtype of x."""
        # With s the sigmoid of y = b x: 1 / (1 + cosh(y)) = 2 s (1 - s), tanh(y / 2) = 2 s - 1. It is even, and s small
        # for y < 0, where no digits are lost; beyond -80 it is 0.
        y = (x.to(torch.promote_types(x.dtype, torch.float32)).abs() * -self.b).clamp_(min=-80)
        s = y.sigmoid()
        falls = y.mul_(2 * s - 1).neg_().add_(2)
        return s.mul_(1 - s).mul_(falls).mul_(2 * self.b).to(x.dtype)

    def __call__(self, g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
        if alpha.numel() not in (1, len(g)) or not (g.numel() and kernels.suit(layer.weight, g, alpha)):
            return self.slope(layer.weight) * g * alpha
        rows, of_rows = filters(layer.weight), filters(g)
        alphas = alpha.reshape(-1, 1).expand(len(rows), 1).contiguous()
        out = torch.empty_like(rows)
        for w, of_w, a, place in few_filters(rows, of_rows, alphas, out):
            kernels.swish(of_w, w, w.abs().mul_(-self.b).sigmoid_(), a, self.b, place)
        return out.view(g.shape)


def within(g: Tensor, x: Tensor, bound: float, closed: bool = False) -> Tensor:
    """g where abs(x) is below the bound, or at most that, else 0; in closed form, whatever torch's clamp has there."""
    bound = _out_from(bound, x.dtype, closed)
    return cast(Tensor, torch.ops.aten.hardtanh_backward(g, x, -bound, bound))


def _out_from(bound: float, dtype: torch.dtype, closed: bool) -> float:
    """The lowest magnitude that is out: the bound, or where it is in, the next number above it."""
    return bound * (1 + torch.finfo(dtype).eps * closed)


def _within(
    g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor, closed: bool = False, share: Tensor | None = None
) -> Tensor:
    """alpha g where abs(W) < 1, or <= 1, else 0; and, where there is a share of each filter, share B."""
    weight, kept = layer.weight, layer.kept
    bound = _out_from(1.0, weight.dtype, closed)
    g = g.contiguous() if weight.is_contiguous() else g
    a_filter = (len(weight), *[1] * (weight.dim() - 1))
    of_rows = alpha.shape == a_filter or (alpha.numel() == 1 and share is None)
    if of_rows and g.numel() and kernels.suit(g, weight, alpha, positive, kept, share):
        return kernels.clipped(g, weight, bound, alpha, positive, kept, share)
    found = within(alpha * g, weight, 1.0, closed)
    if share is None:
        return found
    of_scale = torch.where(positive, share, -share)
    return found + (of_scale if kept is None else torch.where(kept, of_scale, 0))


@dataclass(frozen=True)
class Ede:
    """Error-decay estimator of IR-Net (Qin et al. 2020, Eq. 9 to 12), through the standardisation of W.

    With x the standardised W: dL/dx = alpha g c t (1 - tanh(t x)^2), t = t0 (10 / t0)^progress, c = max(1/t, 1), where
    progress = epoch / epochs. Mean and unbiased deviation of the filter are differentiated through, alpha is not.
    t0: where t starts, above 0; 1e-1 in the authors' code, 1e-3 for its 1/1 ResNet-20.

    alpha: one for the layer, or [F, 1, ...], one for each filter. ValueError for any other, in the backward pass.
    """

    t0: float = 1e-1

    def __post_init__(self) -> None:
        if not 0 < self.t0 < float("inf"):
            raise ValueError(f"t0 must be a finite number above 0, not {self.t0}")

    def sharpness(self, progress: float) -> float:
        """t after this share of the training, from t0 to 10."""
        return float(self.t0 * (10 / self.t0) ** progress)

    def __call__(self, g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
        a_filter = (layer.weight.shape[0], *[1] * (layer.weight.dim() - 1))
        if alpha.numel() != 1 and alpha.shape != a_filter:
            raise ValueError(f"ede takes a scale of one element or of shape {a_filter}, not of {tuple(alpha.shape)}")
        t = self.sharpness(layer.progress)
        rows, standard = wide_rows(layer.weight), layer.derived.standard
        slope = 2 * t / standard.deviation
        factor = 4 * max(1 / t, 1) * t / standard.deviation * alpha.expand(a_filter).reshape(-1, 1)
        share = max(rows.shape[1] - 1, 1) * (2 * t) ** 2
        rows_of_g = filters(g).to(rows.dtype)
        by_kernel = kernels.suit(rows, rows_of_g)
        # One tensor for all parts, but where a graph is recorded.
        out, parts = torch.empty_like(rows) if kernels.plain(g) else None, []
        tensors = (rows, rows_of_g, standard.mean, slope, factor, rows if out is None else out)
        for w, of_w, mean, steep, size, place in few_filters(*tensors):
            # 1 - tanh(t x)^2 = 4 s (1 - s) with s the sigmoid of y = 2 t x.
            y = w.sub(mean).mul_(steep)
            gate = y.sigmoid()
            if by_kernel:
                kernels.through_standardised(of_w, y, gate, size, share, place)
                continue
            of_x = of_w * (1 - gate) * gate
            along = (of_x * y).sum(1, keepdim=True) / share
            of_x = (of_x - of_x.mean(1, keepdim=True) - y * along) * size
            parts.append(of_x if out is None else place.copy_(of_x))
        out = torch.cat(parts) if out is None else out
        return out.to(layer.weight.dtype).view(layer.weight.shape)


@dataclass(frozen=True)
class Rbnn:
    """dL/dV = alpha g F'(V), F'(v) = k max(0, sqrt(2) t - t^2 abs(v)), k = max(1/t, 1) (RBNN, Lin et al. 2020).

    t = 10^(-2 + 3 progress): F' is near sqrt(2) everywhere at first, and within sqrt(2) / t of 0 later. V is what is
    binarized, of a method with a `Rotation` the rotated weight.
    """

    @staticmethod
    def sharpness(progress: float) -> float:
        """t after this share of the training."""
        return float(10 ** (-2 + 3 * progress))

    @staticmethod
    def slope(x: Tensor, t: float) -> Tensor:
        """max(0, sqrt(2) t - t^2 abs(x)), in the shape and dtype of x."""
        return x.abs().mul_(-t * t).add_(sqrt(2) * t).clamp_(min=0)

    def __call__(self, g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
        t = self.sharpness(layer.progress)
        return self.slope(layer.weight, t) * g * (alpha * max(1 / t, 1))


def latent_scores(g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
    """dL/dS = g b abs(W) sign(S) (Diffenderfer & Kailkhura 2021)."""
    return _signed(g, layer.weight, layer, positive)


def binary_scores(g: Tensor, layer: Layer, positive: Tensor, alpha: Tensor) -> Tensor:
    """dL/dS = g b alpha sign(S), the exact straight-through gradient."""
    return _signed(g, alpha, layer, positive)


def _signed(g: Tensor, factor: Tensor, layer: Layer, positive: Tensor) -> Tensor:
    """g abs(factor) b sign(S), with sign(0) = +1."""
    assert layer.scores is not None, "a score gradient needs scores"
    if layer.scores.is_contiguous():
        g = g.contiguous()  # that of a convolution in channels-last is not
    if factor.numel() in (1, g.numel()) and kernels.suit(g, factor, positive, layer.scores):
        return kernels.score_gradient(g, factor, positive, layer.scores)
    alike = factor.numel() in (1, g.numel()) and g.dtype == factor.dtype and g.is_floating_point()
    if alike and (loops := kernels.on_accelerator(g, factor, positive, layer.scores)):
        return cast(Tensor, loops.score_gradient(g, factor, positive, layer.scores))
    magnitude = g * factor.abs()
    return torch.where(positive == (layer.scores >= 0), magnitude, -magnitude)


LATENT_GRADIENTS: dict[str, Gradient] = {
    "scaled": scaled,
    "unscaled": unscaled,
    "ede": Ede(),
    "clipped": Clipped(),
    "clipped-closed": Clipped(closed=True),
    "clipped-unscaled": Clipped(closed=True, scaled=False),
    "xnor": xnor,
    "swish": Swish(),
    "rbnn": Rbnn(),
}
SCORE_GRADIENTS: dict[str, Gradient] = {"latent": latent_scores, "binary": binary_scores}

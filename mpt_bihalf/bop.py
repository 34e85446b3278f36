"""Binary weights without latent ones: an optimizer that flips (Helwegen et al., NeurIPS 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from .parametrization import binary_layers


class Bop(SGD):
    """Flips binary weights; what is real-valued is trained by SGD.

    With u the gradient with respect to a binary weight b: m <- (1 - gamma) m + gamma u, from m = 0; b flips where
    abs(m) > tau and sign(m) = sign(b). m is kept; weight decay and the learning rate do not bear on b.

    params: from `parameter_groups`: of a group with `flips` all elements are -1 or +1, the others are SGD's.
    gamma: in [0, 1], how fast m follows the gradient. tau: at least 0; a higher one flips less. The defaults are the
    paper's, for networks with batch norm; without it gradients are larger and the first step may flip half of all
    weights: gamma = 1e-3 and tau = 1e-5 train Conv2.
    The other arguments are those of `torch.optim.SGD`.

    >>> model = binarize_weights(create_model("conv2", seed=0), "bop", seed=0)
    >>> optimizer = Bop(parameter_groups(model), lr=0.1, momentum=0.9)
    """

    def __init__(self, params: Any, lr: float = 0.1, gamma: float = 1e-4, tau: float = 1e-8, **sgd: Any) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], not {gamma}")
        if not 0 <= tau < float("inf"):
            raise ValueError(f"tau must be a finite number of at least 0, not {tau}")
        super().__init__(params, lr, **sgd)
        for group in self.param_groups:
            for name, value in {"flips": False, "gamma": gamma, "tau": tau}.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["flips"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for b in group["params"] if group["flips"] else ():
                if b.grad is not None:
                    if "mean_gradient" not in self.state[b]:
                        self.state[b]["mean_gradient"] = torch.zeros_like(b)
                    m, u = self.state[b]["mean_gradient"], b.grad
                    _flip(b, m, u, group["gamma"], group["tau"], getattr(self, "found_inf", None))
        return loss


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters of a model in groups for `Bop`: the binary weights, which flip, and all others."""
    flipped = [weight for _, part, weight in binary_layers(model) if part.method.trains == "signs"]
    those = {id(weight) for weight in flipped}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in those]
    return [{"params": flipped, "flips": True}, {"params": others, "flips": False}]


def _flip(b: Tensor, m: Tensor, u: Tensor, gamma: float, tau: float, overflow: Tensor | None) -> None:
    """One step. overflow: a loss scaler's, above 0 where u has become infinite: then neither b nor m may change."""
    before = m if overflow is None else m.clone()
    m.mul_(1 - gamma).add_(u, alpha=gamma)
    flips = (m * b).gt_(tau)  # 1 or 0 in b's dtype: m and b agree in sign, and m is large
    if overflow is not None:
        m.copy_(torch.where(overflow > 0, before, m))
        flips.masked_fill_(overflow > 0, 0)
    b.mul_(flips.mul_(-2).add_(1))

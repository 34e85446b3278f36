"""The published algorithms written plainly, as a yardstick: full sorts, new tensors everywhere, a default layout.

Autograd carries the gradients; a straight-through function stands where a mask or a sign has none.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize


class _Identity(torch.autograd.Function):
    """Forward what was decided, backward the gradient as it comes."""

    @staticmethod
    def forward(ctx: object, trained: Tensor, decided: Tensor) -> Tensor:
        return decided.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def sorted_mask(scores: Tensor, prune_rate: float) -> Tensor:
    """Edge-popup's mask by a full sort of the layer."""
    out = scores.clone()
    _, order = scores.flatten().sort()
    pruned = int(prune_rate * scores.numel())
    flat = out.flatten()
    flat[order[:pruned]] = 0
    flat[order[pruned:]] = 1
    return flat.view(scores.shape)


def sorted_signs(weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """Bi-half's signs by a full sort of each filter; with a mask, of its kept weights."""
    rows = weight.flatten(1)
    if mask is None:
        _, order = rows.sort(dim=1)
        signs = torch.ones_like(rows)
        signs.scatter_(1, order[:, : rows.shape[1] // 2], -1.0)
        return signs.view(weight.shape)
    kept = mask.flatten(1)
    _, order = rows.masked_fill(kept == 0, torch.inf).sort(dim=1)
    count = kept.sum(1, keepdim=True)
    low = torch.arange(rows.shape[1]) < count // 2
    signs = torch.ones_like(rows).scatter(1, order, torch.where(low, -1.0, 1.0))
    return signs.view(weight.shape)


class Plain(nn.Module):
    """One method, plainly."""

    def __init__(self, method: str, weight: Tensor, prune_rate: float) -> None:
        super().__init__()
        self.method, self.prune_rate = method, prune_rate
        if method.startswith("mpt"):
            self.scores = nn.Parameter(torch.empty_like(weight))
            nn.init.kaiming_uniform_(self.scores, a=sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        alpha = sqrt(2 / ((1 - self.prune_rate) * weight[0].numel()))
        if self.method == "sign":
            return _Identity.apply(weight, weight.sign()) * alpha
        if self.method == "bihalf":
            return _Identity.apply(weight, sorted_signs(weight)) * alpha
        if self.method == "magnitude-sign":
            mask = sorted_mask(weight.detach().abs(), self.prune_rate)
            return _Identity.apply(weight, weight.sign() * mask) * alpha
        if self.method == "magnitude-bihalf":
            _, order = weight.flatten(1).sort(dim=1)
            pruned = int(self.prune_rate * order.shape[1])
            low = (order.shape[1] - pruned) // 2
            ternary = torch.ones_like(weight).flatten(1)
            ternary.scatter_(1, order[:, :low], -1.0)
            ternary.scatter_(1, order[:, low : low + pruned], 0.0)
            return _Identity.apply(weight, ternary.view(weight.shape)) * alpha
        magnitude = self.scores.abs()
        if self.method == "mpt-balanced":
            signs = sorted_signs(weight)
            rows, sign = magnitude.detach().flatten(1), signs.flatten(1)
            half = round((1 - self.prune_rate) * rows.shape[1] / 2)
            best = torch.zeros_like(rows)
            for side in (1.0, -1.0):
                _, order = rows.masked_fill(sign != side, -1.0).sort(dim=1)
                best.scatter_(1, order[:, rows.shape[1] - half :], 1.0)
            mask = _Identity.apply(magnitude, best.view(weight.shape))
            return mask * signs * alpha
        mask = _Identity.apply(magnitude, sorted_mask(magnitude.detach(), self.prune_rate))
        if self.method == "mpt-bihalf":
            return mask * sorted_signs(weight, mask.detach()) * alpha
        gain = (mask * weight.abs()).sum().detach() / mask.sum().detach()
        return mask * weight.sign() * gain


def plain(model: nn.Module, method: str, prune_rate: float) -> nn.Module:
    """Put a method on a network the plain way, in place."""
    for layer in list(model.modules()):
        if method != "dense" and isinstance(layer, nn.Conv2d | nn.Linear):
            part = Plain(method, layer.weight, prune_rate if method.startswith(("mpt", "magnitude")) else 0.0)
            if method.startswith("mpt"):
                layer.weight.requires_grad_(False)
            parametrize.register_parametrization(layer, "weight", part)
    return model


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """One training step; the loss is read each time, as for a running mean."""
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def plain_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, 0.1, momentum=0.9, weight_decay=1e-4)

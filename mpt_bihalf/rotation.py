"""Latent weights rotated towards their signs (RBNN, Lin et al., NeurIPS 2020)."""

from __future__ import annotations

from math import isqrt, pi

import torch
from torch import Tensor, nn

from .filters import filters
from .standardise import nearly_equal

ROUNDS = 3


def sides(connections: int) -> tuple[int, int]:
    """a, b with a b = connections, a the largest divisor up to the square root."""
    a = next(a for a in range(isqrt(connections), 0, -1) if connections % a == 0)
    return a, connections // a


class Rotation(nn.Module):
    """V = X + abs(sin(theta)) (R1' X R2 - X) of each filter X [a, b], which is W standardised: what is binarized of W.

    X has mean 0 and unbiased deviation 1. theta, one a filter, is trained and begins at pi / 2. R1 [a, a] and R2 [b, b]
    are orthogonal, shared by the filters, drawn at random and turned by `rotate`, not by gradients.

    code: as in the published code the rotated part is a constant in the gradient of W, so that at the beginning W gets
    none.
    """

    def __init__(self, weight: Tensor, code: bool = False) -> None:
        super().__init__()
        rows = filters(weight.detach())
        a, b = sides(rows.shape[1])
        self.code = code
        self.angle = nn.Parameter(torch.full_like(rows[:, 0], pi / 2))
        self.register_buffer("r1", torch.eye(a, dtype=rows.dtype, device=rows.device))
        self.register_buffer("r2", torch.eye(b, dtype=rows.dtype, device=rows.device))
        self.r1: Tensor
        self.r2: Tensor

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """R1 and R2 at random, each orthogonal matrix as likely (Haar). Drawn on the host, in float64."""
        for r in (self.r1, self.r2):
            normal = torch.randn(r.shape, generator=generator, dtype=torch.float64, device=generator.device)
            q, upper = torch.linalg.qr(normal)
            r.copy_(q * upper.diagonal().sign())

    def standardised(self, weight: Tensor) -> Tensor:
        """X, [F, a, b]; of a filter of equal weights 0, whatever their mean rounds to."""
        rows = filters(weight)
        mean = rows.mean(1, keepdim=True)
        around = rows - mean
        deviation = torch.linalg.vector_norm(around, dim=1, keepdim=True) / max(rows.shape[1] - 1, 1) ** 0.5
        x = around / torch.where(nearly_equal(deviation, mean), torch.inf, deviation)
        return x.view(-1, len(self.r1), len(self.r2))

    def forward(self, weight: Tensor) -> Tensor:
        x = self.standardised(weight)
        y = self.r1.T @ x @ self.r2
        by = self.angle.sin().abs().view(-1, 1, 1)
        return (x + by * ((y.detach() if self.code else y) - x)).view(weight.shape)

    @torch.no_grad()
    def rotate(self, weight: Tensor, rounds: int = ROUNDS) -> list[Tensor]:
        """Turn R1 and R2 so that sum_f <B_f, R1' X_f R2> grows, B_f the signs of R1' X_f R2, by so many rounds.

        Each round takes B, then the best R1 for it, then the best R2, both from a singular value decomposition. Returns
        the objective after each of these, 0-dim: it never falls.
        """
        x, objectives = self.standardised(weight), []

        def objective(b: Tensor) -> Tensor:
            return (b * (self.r1.T @ x @ self.r2)).sum()

        for _ in range(rounds):
            y = self.r1.T @ x @ self.r2
            b = torch.where(y >= 0, 1.0, -1.0).to(x.dtype)
            objectives.append(objective(b))
            self.r1.copy_(_nearest((b @ self.r2.T @ x.mT).sum(0)).mT)
            objectives.append(objective(b))
            self.r2.copy_(_nearest((x.mT @ self.r1 @ b).sum(0)))
            objectives.append(objective(b))
        return objectives

    def begin_epoch(self, weight: Tensor) -> None:
        """Before each epoch, as `StepRules` calls it: `rotate`, three rounds."""
        self.rotate(weight)


def _nearest(matrix: Tensor) -> Tensor:
    """The orthogonal matrix of the largest inner product with this one: U V' of its U S V', in float32 or wider."""
    u, _, v = torch.linalg.svd(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
    return (u @ v).to(matrix.dtype)

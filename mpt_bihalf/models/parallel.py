"""Branches side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Branches(nn.ModuleList):
    """Each module gets the same [N, C, H, W]; what they give is concatenated along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)

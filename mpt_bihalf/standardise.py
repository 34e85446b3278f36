"""Weights standardised per filter: mean 0, standard deviation 1 (IR-Net, Qin et al., CVPR 2020, Eq. 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .filters import few_filters, wide_rows


def centred(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W less its mean [F, D], and [F, 1] each the mean, the unbiased deviation, and whether all weights are equal.

    Per filter, in float32 or wider. Equal weights have deviation 1, and miss their mean by the rounding of a sum. No
    host synchronisation.
    """
    rows = wide_rows(weight)
    mean = rows.mean(1, keepdim=True)
    around = rows - mean
    # torch.std_mean says the same, but takes twenty times as long on the CPU.
    deviation = torch.linalg.vector_norm(around, dim=1, keepdim=True) / max(rows.shape[1] - 1, 1) ** 0.5
    equal = deviation <= 8 * torch.finfo(rows.dtype).eps * mean.abs()
    return around, torch.where(equal, rows[:, :1], mean), torch.where(equal, 1, deviation), equal


class Standard(NamedTuple):
    """What standardising tells of each filter: where W is at least its mean (bool [F, D]), mean, deviation ([F, 1])."""

    positive: Tensor
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Standard:
        """As `centred` has it, in float32 or wider."""
        rows, parts = wide_rows(weight), []
        positive = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
        for part, sign in few_filters(rows, positive):
            around, mean, deviation, equal = centred(part)
            torch.ge(around, torch.where(equal, -torch.inf, 0), out=sign)
            parts.append((mean, deviation))
        return cls(positive, *(torch.cat(each) for each in zip(*parts, strict=True)))

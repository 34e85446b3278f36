"""Weights standardised per filter: mean 0, standard deviation 1 (IR-Net, Qin et al., CVPR 2020, Eq. 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import kernels
from .filters import few_filters, filters, wide_rows


class Standard(NamedTuple):
    """What standardising tells of each filter, in float32 or wider, without host synchronisation.

    Equal weights have the deviation 1, and are their mean whatever a sum of them rounds to.

    positive: bool [F, D], where W is at least its filter's mean.
    mean, deviation: [F, 1], the deviation unbiased.
    magnitude: [F, 1], the mean magnitude of the kept weights standardised; 0 for equal weights, NaN for none.
    """

    positive: Tensor
    mean: Tensor
    deviation: Tensor
    magnitude: Tensor

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor | None = None) -> Standard:
        """Of W, any float dtype [F, ...]; mask: bool in its shape, None keeps all."""
        rows = wide_rows(weight)
        kept = None if mask is None else filters(mask)
        if kernels.suit(rows, kept):
            return cls(*kernels.standardise(rows, kept))
        loops = kernels.on_accelerator(rows, kept) if rows.numel() and rows.dtype == torch.float32 else None
        if loops and rows.shape[1] <= loops.LONGEST:
            return cls(*loops.standardise(rows, kept))
        tensors = (rows,) if kept is None else (rows, kept)
        return cls(*map(torch.cat, zip(*(_of_few(*part) for part in few_filters(*tensors)), strict=True)))


def nearly_equal(deviation: Tensor, mean: Tensor) -> Tensor:
    """Whether values of this deviation and mean are equal, but for what their mean rounds to."""
    return deviation <= 8 * torch.finfo(mean.dtype).eps * mean.abs()


def _of_few(rows: Tensor, kept: Tensor | None = None) -> Standard:
    size = rows.shape[1]
    mean = rows.mean(1, keepdim=True)
    around = rows - mean
    # torch.std_mean says the same, but takes twenty times as long on the CPU.
    deviation = torch.linalg.vector_norm(around, dim=1, keepdim=True) / max(size - 1, 1) ** 0.5
    equal = nearly_equal(deviation, mean)
    positive = around >= torch.where(equal, -torch.inf, 0)
    deviation = torch.where(equal, 1, deviation)
    magnitude = around.abs_() if kept is None else around.abs_().mul_(kept)
    total = magnitude.sum(1, keepdim=True)
    mean_magnitude = total / (size if kept is None else kept.sum(1, keepdim=True)) / deviation * ~equal
    return Standard(positive, torch.where(equal, rows[:, :1], mean), deviation, mean_magnitude)

"""Weights standardised per filter: mean 0, standard deviation 1 (IR-Net, Qin et al., CVPR 2020, Eq. 6)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .latent import filters

ELEMENTS = 2**18  # in a part: enough to share among threads, few enough for a cache


def wide_rows(weight: Tensor) -> Tensor:
    """W as rows [F, D] in float32 or wider: half precision would lose the digits of a mean."""
    return filters(weight).to(torch.promote_types(weight.dtype, torch.float32))


def centred(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W less its mean [F, D], the mean [F, 1] and the unbiased deviation [F, 1], per filter, in float32 or wider.

    A filter of equal weights has deviation 1. No host synchronisation.
    """
    rows = wide_rows(weight)
    mean = rows.mean(1, keepdim=True)
    around = rows - mean
    # torch.std_mean says the same, but takes twenty times as long on the CPU.
    deviation = torch.linalg.vector_norm(around, dim=1, keepdim=True) / max(rows.shape[1] - 1, 1) ** 0.5
    return around, mean, torch.where(deviation > 0, deviation, 1)


def few_filters(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matrices [F, ...] in parts of a few rows, so that what is worked out of a part stays in a cache."""
    at_once = max(1, ELEMENTS // max(1, tensors[0].shape[1]))
    return zip(*(tensor.split(at_once) for tensor in tensors), strict=True)


def standardised(weight: Tensor) -> Tensor:
    """x = (W - mean) / deviation per filter, as rows [F, D] in float32 or wider."""
    around, _, deviation = centred(weight)
    return around.div_(deviation)

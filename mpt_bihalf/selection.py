"""Exact order statistics: the k-th value of each row, and masks of exactly the largest so many."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .devices import host_reads_free


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The `k`-th smallest value of each row, `k` counted from 0.

    values: float32 or float64 [R, D]; returns [R] of the same dtype, on the same device. NaN ranks above all.
    """
    if host_reads_free(values):
        rows = np.partition(values.detach().numpy(), k, axis=1)
        return torch.from_numpy(rows[:, k].copy())
    return values.kthvalue(k + 1, dim=1).values


def largest(values: Tensor, count: int) -> Tensor:
    """Mask of exactly the `count` largest values of each row; of equal values those of higher index.

    values: any float dtype [R, D] without NaN; count: 0 to D; returns bool [R, D]. This is the top of a stable
    ascending sort, without sorting. Off the CPU it never waits for the device.
    """
    size = values.shape[1]
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if count >= size:
        return torch.ones_like(values, dtype=torch.bool)
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()  # exact, and order-preserving, for all narrower float types
    cut = kth_smallest(values, size - count).unsqueeze(1)
    chosen = values >= cut
    surplus = chosen.sum(1, keepdim=True) - count
    if host_reads_free(values) and not surplus.any():
        return chosen
    ties = values == cut
    return chosen & ~(ties & (ties.cumsum(1) <= surplus))

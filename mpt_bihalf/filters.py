"""A weight as the matrix of its filters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ELEMENTS = 2**18  # in a part: enough to share among threads, few enough for a cache


def filters(weight: Tensor) -> Tensor:
    """The weight as a matrix [F, D]: a row for each filter, D connections in it."""
    return weight.reshape(weight.shape[0], -1) if weight.numel() else weight.new_empty(weight.shape[0], 0)


def wide_rows(weight: Tensor) -> Tensor:
    """W as rows [F, D] in float32 or wider: half precision would lose the digits of a mean."""
    return filters(weight).to(torch.promote_types(weight.dtype, torch.float32))


def few_filters(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matrices [F, ...] in parts of a few rows, so that what is worked out of a part stays in a cache."""
    at_once = max(1, ELEMENTS // max(1, tensors[0].shape[1]))
    return zip(*(tensor.split(at_once) for tensor in tensors), strict=True)

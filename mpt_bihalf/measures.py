"""What to look at in binary weights: entropy, share of +1, flips, changes of the mask.

All take B, with -1, 0 (pruned) and +1, leading dimension = filter, of any dtype and on any device, and answer with
float32 or int64 tensors on that device; nothing waits for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .filters import filters


class Flips(NamedTuple):
    """How many weights changed sign: 0-dim int64 tensors. A weight that is pruned before or after does not count."""

    to_positive: Tensor
    to_negative: Tensor


def bernoulli_entropy(share: Tensor) -> Tensor:
    """Entropy in bits, in [0, 1], of a bit that is +1 with probability `share`: exactly 1 at 1/2. NaN gives 0."""
    other = 1 - share
    return 0 - torch.where(share > 0, share * share.log2(), 0) - torch.where(other > 0, other * other.log2(), 0)


def positive_share(binary: Tensor) -> Tensor:
    """Share of +1 among the kept weights of a layer, a 0-dim tensor in [0, 1]; NaN where none is kept."""
    return (binary > 0).sum().float() / (binary != 0).sum()


def filter_positive_share(binary: Tensor) -> Tensor:
    """Share of +1 among the kept weights of each filter: [F], in [0, 1]; NaN where none is kept."""
    rows = filters(binary)
    return (rows > 0).sum(1).float() / (rows != 0).sum(1)


def entropy(binary: Tensor) -> Tensor:
    """Entropy in bits of the kept weights of a layer, that of their share of +1: a 0-dim tensor in [0, 1]."""
    return bernoulli_entropy(positive_share(binary))


def filter_entropy(binary: Tensor) -> Tensor:
    """Entropy in bits of the kept weights of each filter: [F], in [0, 1]; 0 for a filter with none."""
    return bernoulli_entropy(filter_positive_share(binary))


def kept_share(binary: Tensor) -> Tensor:
    """Fraction of the weights that is kept, a 0-dim tensor in [0, 1]."""
    return (binary != 0).float().mean()


def flips(before: Tensor, after: Tensor) -> Flips:
    """Sign changes between two states of one layer, of the same shape."""
    return Flips(((before < 0) & (after > 0)).sum(), ((before > 0) & (after < 0)).sum())


def changes(before: Tensor, after: Tensor) -> Tensor:
    """What there is to tell of a layer: float32 [7], in few passes over two states of it.

    Of `after` the `entropy`, the mean `filter_entropy`, the `positive_share` and the `kept_share`; from `before` to it
    the `flips`, to +1 and to -1, and the `mask_change`.
    """
    (was_positive, was_kept), (positive, kept) = ((rows > 0, rows != 0) for rows in (filters(before), filters(after)))
    share = positive.sum(1).float() / kept.sum(1)
    whole = positive.sum().float() / kept.sum()
    flipped = (was_positive != positive).logical_and_(was_kept).logical_and_(kept)
    up = (flipped & positive).sum()
    values = [
        bernoulli_entropy(whole),
        bernoulli_entropy(share).mean(),
        whole,
        kept.float().mean(),
        up,
        flipped.sum() - up,
        (was_kept != kept).float().mean(),
    ]
    return torch.stack([value.float() for value in values])


def cut_off(weight: Tensor, binary: Tensor) -> Tensor:
    """Half-way between the lowest latent weight that is +1 and the highest that is -1, per filter: [F], of W's dtype.

    weight: W; binary: B of it. For a filter of one sign only, the extreme of that sign; NaN where none is kept.
    """
    rows, signs = filters(weight.detach()), filters(binary)
    lowest = rows.masked_fill(signs <= 0, torch.inf).amin(1)
    highest = rows.masked_fill(signs >= 0, -torch.inf).amax(1)
    middle = (lowest + highest) / 2
    one_sign = torch.where(lowest.isinf(), highest, lowest)
    return torch.where(lowest.isinf() | highest.isinf(), torch.where(one_sign.isinf(), torch.nan, one_sign), middle)


def mask_change(before: Tensor, after: Tensor) -> Tensor:
    """Share of the weights that are kept in one of the two states and pruned in the other: 0-dim, in [0, 1]."""
    return ((before != 0) != (after != 0)).float().mean()

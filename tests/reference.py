"""The method in plain Python: slow, exact, and without a line of the package under test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from math import floor, fsum, log2, sqrt
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Row = list[float]
Flags = list[bool]

BIT_RATIO_METHODS = ("bihalf", "mpt-bihalf", "mpt-balanced", "magnitude-bihalf")
SCORE_METHODS = ("mpt-sign", "mpt-bihalf", "mpt-balanced")
MASKED_METHODS = (*SCORE_METHODS, "magnitude-sign", "magnitude-bihalf")
# Those with the mean magnitude of each filter, and those with the scale nearest to its weights.
L1_FILTER, NEAREST = ("xnor", "bi-real"), ("least-squares", "abc")
# Those that learn a scale of each filter, some for weights that are rotated first.
ROTATED = ("rbnn", "rbnn-bihalf")
LEARNED = ("bnn+", "xnor++", *ROTATED)
KNOWN = {"sign", "irnet", "bop", "real-to-binary", *L1_FILTER, *NEAREST, *LEARNED, *BIT_RATIO_METHODS, *MASKED_METHODS}


def half_up(x: Any, n: int) -> int:
    return floor(Fraction(str(x)) * n + Fraction(1, 2))


def kept_of(n: int, prune_rate: Any) -> int:
    return n - half_up(prune_rate, n)


def ascending(values: Sequence[float]) -> list[int]:
    """Indices from the lowest value to the highest; of equal ones the lower index first."""
    return sorted(range(len(values)), key=values.__getitem__)


def top(values: Sequence[float], count: int) -> Flags:
    chosen = set(ascending(values)[len(values) - count :])
    return [i in chosen for i in range(len(values))]


def positives(row: Row, kept: Flags, p_pos: Any) -> Flags:
    """Which weights of a filter are +1 by transport over the kept, or would be if they were kept."""
    order = ascending(row)
    kept_order = [i for i in order if kept[i]]
    plus = kept_order[len(kept_order) - half_up(p_pos, len(kept_order)) :]
    above = set(order[order.index(plus[0]) :]) if plus else set()
    return [i in above for i in range(len(row))]


def signs(row: Row, kept: Flags, p_pos: Any) -> list[int]:
    return [(1 if plus else -1) if keep else 0 for plus, keep in zip(positives(row, kept, p_pos), kept, strict=True)]


def rows_of(weight: Tensor) -> list[Any]:
    """A list for each filter."""
    return [row.reshape(-1).tolist() for row in weight.detach()]


def tensor_of(rows: Sequence[Any], like: Tensor) -> Tensor:
    return torch.tensor(rows, device=like.device).reshape(like.shape)


def score_masks(scores: Sequence[Tensor], prune_rate: Any, scope: str) -> list[Tensor]:
    """Bool masks of the layers: `layer`, `filter` or `global`."""
    magnitudes = [s.detach().abs() for s in scores]
    if scope == "filter":
        return [tensor_of([top(r, kept_of(len(r), prune_rate)) for r in rows_of(m)], m) for m in magnitudes]
    if scope == "layer":
        return [tensor_of(top(m.flatten().tolist(), kept_of(m.numel(), prune_rate)), m) for m in magnitudes]
    values = [(v, layer) for layer, m in enumerate(magnitudes) for v in m.flatten().tolist()]
    order = ascending([v for v, _ in values])
    count = kept_of(len(values), prune_rate)
    kept = set(order[len(order) - count :])
    best = {values[i][1]: i for i in order}  # the last of each layer in the ranking
    kept |= set(best.values())
    for i in order:  # from the lowest: what a spared layer costs another one
        if len(kept) > count and i in kept and i not in best.values():
            kept.remove(i)
    masks, start = [], 0
    for m in magnitudes:
        masks.append(tensor_of([i in kept for i in range(start, start + m.numel())], m))
        start += m.numel()
    return masks


def decide(
    method: str, weights: Sequence[Tensor], scores: Sequence[Tensor], prune_rate: Any, p_pos: Any, scope: str = "layer"
) -> list[tuple[Tensor, Tensor]]:
    """For each layer what a method keeps and where it has +1, would-be signs included: bool tensors.

    weights: what is binarized, so of methods that rotate theirs the rotated ones.
    """
    if method not in KNOWN:
        raise NotImplementedError(f"say here what {method} keeps and where it has +1")
    if method in ("mpt-sign", "mpt-bihalf"):
        masks = score_masks(scores, prune_rate, scope)
    elif method == "magnitude-sign":
        masks = score_masks(weights, prune_rate, "layer")
    else:
        masks = [torch.ones_like(w, dtype=torch.bool) for w in weights]
    decided = []
    for layer, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        rows, kept = rows_of(weight), rows_of(mask)
        size = len(rows[0])
        count = kept_of(size, prune_rate)
        plus_count = half_up(p_pos, count)
        plus = [positives(row, keep, p_pos) for row, keep in zip(rows, kept, strict=True)]
        of_sign = ("sign", "bop", "real-to-binary", "mpt-sign", "magnitude-sign", *L1_FILTER, "least-squares")
        if method in (*of_sign, "bnn+", "xnor++", "rbnn"):
            plus = [[w >= 0 for w in row] for row in rows]
        if method == "abc":
            every = [w for row in rows for w in row]
            plus = [[w >= fsum(every) / len(every) for w in row] for row in rows]
        if method == "irnet":
            plus = [[w >= fsum(row) / size for w in row] for row in rows]
        if method == "magnitude-bihalf":
            plus = [top(row, plus_count) for row in rows]
            kept = [
                [p or not t for p, t in zip(high, top(row, size - (count - plus_count)), strict=True)]
                for row, high in zip(rows, plus, strict=True)
            ]
        if method == "mpt-balanced":
            kept = [
                _balanced(row, p, plus_count, count) for row, p in zip(rows_of(scores[layer].abs()), plus, strict=True)
            ]
        decided.append((tensor_of(kept, weight), tensor_of(plus, weight)))
    return decided


def _balanced(magnitudes: Row, plus: Flags, plus_count: int, count: int) -> Flags:
    kept: set[int] = set()
    for sign, quota in ((True, plus_count), (False, count - plus_count)):
        group = [i for i in ascending(magnitudes) if plus[i] is sign]
        assert len(group) >= quota
        kept |= set(group[len(group) - quota :])
    return [i in kept for i in range(len(magnitudes))]


def kaiming_scale(mask: Tensor) -> float:
    """sqrt(2 / (k D)) of the kept fraction k, 0 where nothing is kept."""
    k = Fraction(int(mask.sum()), mask.numel())
    return sqrt(2 / (k * mask[0].numel())) if k else 0.0


def l1_scale(weight: Tensor, mask: Tensor) -> float:
    kept = [abs(w) for w, m in zip(weight.flatten().tolist(), mask.flatten().tolist(), strict=True) if m]
    return sum(kept) / len(kept) if kept else 0.0


def power_of_two_scale(weight: Tensor, mask: Tensor) -> Tensor:
    """Per filter 2^round(log2 m), m the mean magnitude of its kept standardised weights; 0 where none is kept."""
    alphas = []
    for row, kept in zip(rows_of(weight), rows_of(mask), strict=True):
        mean = fsum(row) / len(row)
        deviation = sqrt(fsum((w - mean) ** 2 for w in row) / (len(row) - 1))
        magnitudes = [abs(w - mean) / deviation for w, keep in zip(row, kept, strict=True) if keep]
        alphas.append(2.0 ** round(log2(fsum(magnitudes) / len(magnitudes))) if magnitudes else 0.0)
    return torch.tensor(alphas, dtype=torch.float64).view(-1, *[1] * (weight.dim() - 1))


def filter_scale(weight: Tensor, mask: Tensor, positive: Tensor | None = None) -> Tensor:
    """Per filter the mean of the kept w b, b the signs, by default those of w; 0 where none is kept, or it is less."""
    signs = rows_of(weight >= 0 if positive is None else positive)
    alphas = []
    for row, kept, plus in zip(rows_of(weight), rows_of(mask), signs, strict=True):
        along = [w if p else -w for w, keep, p in zip(row, kept, plus, strict=True) if keep]
        alphas.append(max(0.0, fsum(along) / len(along)) if along else 0.0)
    return torch.tensor(alphas, dtype=torch.float64).view(-1, *[1] * (weight.dim() - 1))


def median_scale(weight: Tensor, mask: Tensor) -> Tensor:
    """Per filter the median magnitude of the kept weights, of all where none is kept."""
    alphas = []
    for row, kept in zip(rows_of(weight.abs()), rows_of(mask), strict=True):
        alphas.append(median([w for w, keep in zip(row, kept, strict=True) if keep] or row))
    return torch.tensor(alphas, dtype=torch.float64).view(-1, *[1] * (weight.dim() - 1))


def scale_of(method: str, weight: Tensor, mask: Tensor) -> float | Tensor:
    """The scale of a method by its closed form."""
    if method == "irnet":
        return power_of_two_scale(weight, mask).to(weight)
    if method in (*L1_FILTER, *NEAREST):
        (_, positive), *_ = decide(method, [weight], [], 0.0, 0.5)
        return filter_scale(weight, mask, positive).to(weight)
    if method == "real-to-binary":
        return float(mask.any())
    if method in ROTATED:
        return filter_scale(weight, mask, weight >= 0).to(weight)
    if method == "bnn+":
        return median_scale(weight, mask).to(weight)
    return l1_scale(weight, mask) if method == "mpt-sign" else kaiming_scale(mask)


@contextmanager
def one_line_error(match: str | None = None) -> Iterator[None]:
    """Expect a ValueError whose message is a single line."""
    with pytest.raises(ValueError, match=match) as error:
        yield
    assert str(error.value) and "\n" not in str(error.value)


class Attending(nn.Module):
    """For digits 48 of its 170 parameters are the matrix that attention makes its inputs with, and no layer's."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3, stride=4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).mT
        logits: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return logits

"""Exact selection against sort, kthvalue and topk, over sizes, with the growth of its cost.

Each selects the same half of one row of normal draws that moves a little between calls, as scores do between steps; the
masks are compared before anything is timed.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

import torch
from measuring import in_turn, median_ratio, show
from torch import Tensor

from mpt_bihalf.commandline import parse
from mpt_bihalf.devices import keep_freed_memory
from mpt_bihalf.endings import run_command
from mpt_bihalf.selection import Selection


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What to select from."""

    sizes: list[int] = (1_000, 10_000, 100_000, 1_000_000, 4_194_304, 10_000_000, 100_000_000)  # type: ignore[assignment]
    """numbers of scores in the row"""
    prune_rate: float = 0.5
    """fraction pruned"""
    rounds: int = 7
    """times each is done, in turn with the others"""
    slowest: int = 10_000_000
    """largest size at which sort, kthvalue and topk are timed too"""
    json: bool = False
    """print JSON"""


def ours(scores: Tensor, count: int) -> Tensor:
    return Selection().largest(scores, count, absolute=True)


def a_step_later(selection: Selection, scores: Tensor, count: int, drift: Tensor) -> Tensor:
    return selection.largest(scores.add_(drift), count, absolute=True)


def by_sort(scores: Tensor, count: int) -> Tensor:
    _, order = scores.abs().sort(dim=1, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, scores.shape[1] - count :], True)


def by_kthvalue(scores: Tensor, count: int) -> Tensor:
    magnitudes = scores.abs()
    return magnitudes >= magnitudes.kthvalue(scores.shape[1] - count + 1, dim=1, keepdim=True).values


def by_topk(scores: Tensor, count: int) -> Tensor:
    _, best = scores.abs().topk(count, dim=1, sorted=False)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def main() -> None:
    options = parse(Sizes, "Exact selection against sort, kthvalue and topk.")
    keep_freed_memory()
    rows = []
    for size in options.sizes:
        scores = torch.randn(1, size, generator=torch.Generator().manual_seed(0))
        count = size - round(options.prune_rate * size)
        moved = scores.clone()
        drift = torch.randn(1, size, generator=torch.Generator().manual_seed(1)).mul_(1e-3)
        tasks = {
            "a step later": partial(a_step_later, Selection(), moved, count, drift),
            "from nothing": partial(ours, scores, count),
        }
        if size <= options.slowest:
            expected = by_sort(scores, count)
            assert torch.equal(ours(scores, count), expected)
            tasks |= {
                "sort": partial(by_sort, scores, count),
                "kthvalue": partial(by_kthvalue, scores, count),
                "topk": partial(by_topk, scores, count),
            }
        seconds = in_turn(tasks, options.rounds)
        later = seconds["a step later"]
        rows.append(
            {
                "size": size,
                **{f"{name}, ms": 1000 * statistics.median(times) for name, times in seconds.items()},
                "a step later, ns an element": 1e9 * statistics.median(later) / size,
                **{f"{name} / ours": median_ratio(seconds[name], later) for name in seconds if name[0] in "skt"},
            }
        )
    show(rows, options.json)


if __name__ == "__main__":
    run_command(main)

"""What a training step does, counted, not timed: no sort, no copy to the host, few passes over the weights."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpt_bihalf import METHODS, kernels
from mpt_bihalf.training import Run, train_step
from mpt_bihalf.training.build import build_network, build_optimizer

SORTS = ("sort", "argsort", "kthvalue", "msort", "unique", "median")
TO_HOST = ("_local_scalar_dense", "nonzero", "item", "equal")
VIEWS = ("view", "detach", "alias", "expand", "t", "_unsafe_view", "reshape", "unsqueeze", "select", "slice", "squeeze")
VIEWS += ("split", "lift_fresh", "empty", "empty_like")  # the last two write nothing


class Count(TorchDispatchMode):
    """The names of the operations, and how many elements they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.written = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names.append(name)
        tensors = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)]
        if name not in VIEWS:
            self.written[name] += sum(t.numel() for t in tensors)
        return out


@cache
def steps(method: str, device: str, loops: str = "compiled") -> Count:
    """What the third step of a training does, on conv2 with images of 32x32."""
    run = Run(method=method, prune_rate=0.9)
    with mock.patch.object(kernels, "compiled", return_value=None) if loops == "torch" else nullcontext():
        model = build_network(run, 10, 3, 32).to(device)
        optimizer = build_optimizer(run, model)
        x, y = torch.randn(2, 3, 32, 32, device=device), torch.zeros(2, dtype=torch.long, device=device)
        for _ in range(2):
            train_step(model, optimizer, x, y)
        with Count() as count:
            train_step(model, optimizer, x, y)
    return count


@pytest.mark.parametrize("method", METHODS)
def test_no_score_is_sorted_on_the_cpu(method: str) -> None:
    assert not set(steps(method, "cpu", "compiled").names) & set(SORTS)


# Passes over all weights that a step writes beyond the dense step: mask, signs, weight in use, gradient. With the
# compiled loops, and with what torch does in their place; what NumPy does there is not seen.
MOST = {
    "dense": (0, 0),
    "sign": (2, 7),
    "irnet": (4, 15),
    "bop": (9, 14),
    "bihalf": (2, 6),
    "mpt-sign": (1, 15),
    "mpt-bihalf": (2, 11),
    "mpt-balanced": (6, 14),
    "magnitude-sign": (3, 8),
    "magnitude-bihalf": (5, 9),
}
WEIGHTS = 3 * 64 * 9 + 64 * 64 * 9 + 16384 * 256 + 256 * 256 + 256 * 10  # of conv2 with images of 32x32


@pytest.mark.parametrize("loops", ["compiled", "torch"])
@pytest.mark.parametrize("method", METHODS)
def test_few_passes_over_the_weights_are_written(method: str, loops: str) -> None:
    if loops == "compiled" and kernels.compiled() is None:
        pytest.skip("the compiled loops are not there")
    extra = steps(method, "cpu", loops).written - steps("dense", "cpu", loops).written
    assert round(extra.total() / WEIGHTS) <= MOST[method][loops == "torch"], extra


@pytest.mark.parametrize("method", METHODS)
def test_nothing_goes_to_the_host_on_other_devices(method: str) -> None:
    assert not set(steps(method, "meta").names) & set(TO_HOST)

"""What a training step does, counted, not timed: no sort, no copy to the host, few passes over the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpt_bihalf import METHODS, kernels
from mpt_bihalf.training import Run, train_step
from mpt_bihalf.training.loop import build_network, build_optimizer

SORTS = ("sort", "argsort", "kthvalue", "msort", "unique", "median")
TO_HOST = ("_local_scalar_dense", "nonzero", "item", "equal")
VIEWS = ("view", "detach", "alias", "expand", "t", "_unsafe_view", "reshape", "unsqueeze", "select", "slice", "squeeze")


class Count(TorchDispatchMode):
    """The names of the operations, and how many wrote a tensor as large as the largest layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.names, self.large = size, [], []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names.append(name)
        tensors = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)]
        if name not in VIEWS and any(t.numel() >= self.size for t in tensors):
            self.large.append(name)
        return out


def steps(method: str, device: str) -> Count:
    """What the third step of a training does, on conv2 with images of 32x32."""
    run = Run(method=method, prune_rate=0.9)
    model = build_network(run, 10, 3, 32).to(device)
    optimizer = build_optimizer(run, model)
    x, y = torch.randn(2, 3, 32, 32, device=device), torch.zeros(2, dtype=torch.long, device=device)
    for _ in range(2):
        train_step(model, optimizer, x, y)
    with Count(size=256 * 16384) as count:
        train_step(model, optimizer, x, y)
    return count


@pytest.mark.parametrize("method", METHODS)
def test_no_score_is_sorted_on_the_cpu(method: str) -> None:
    assert not set(steps(method, "cpu").names) & set(SORTS)


# Tensors as large as the largest layer that a step writes beyond the dense step: mask, signs, weight in use, gradient.
MOST = {
    "dense": 0,
    "sign": 3,
    "irnet": 20,
    "bop": 10,
    "bihalf": 3,
    "mpt-sign": 3,
    "mpt-bihalf": 4,
    "mpt-balanced": 9,
    "magnitude-sign": 4,
    "magnitude-bihalf": 6,
}


@pytest.mark.skipif(kernels.compiled() is None, reason="the compiled loops are not there")
@pytest.mark.parametrize("method", METHODS)
def test_few_tensors_as_large_as_the_largest_layer_are_written(method: str) -> None:
    dense, large = len(steps("dense", "cpu").large), steps(method, "cpu").large
    assert len(large) - dense <= MOST[method], large


@pytest.mark.parametrize("method", METHODS)
def test_nothing_goes_to_the_host_on_other_devices(method: str) -> None:
    assert not set(steps(method, "meta").names) & set(TO_HOST)

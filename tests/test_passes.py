"""What a training step does, counted, not timed: no sort, no copy to the host, few passes over the weights."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import Any
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpt_bihalf import METHODS, kernels
from mpt_bihalf.gradients import SCORE_GRADIENTS
from mpt_bihalf.masks import SCOPES
from mpt_bihalf.scales import SCALES
from mpt_bihalf.training import Run, train_step
from mpt_bihalf.training.build import build_network, build_optimizer, step_rules

SORTS = ("sort", "argsort", "kthvalue", "msort", "unique", "median")
# What waits for the device, or has a shape that its values decide.
TO_HOST = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "bincount", "histc")
TO_HOST += ("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "repeat_interleave")
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
        rules = step_rules(run, model)
        for _ in range(2):
            train_step(model, optimizer, x, y, rules=rules)
        with Count() as count:
            train_step(model, optimizer, x, y, rules=rules)
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
    "xnor": (2, 16),
    "bi-real": (2, 10),
    "least-squares": (2, 10),
    "abc": (2, 9),
    "bnn+": (5, 30),
    "xnor++": (2, 10),
    "rbnn": (36, 41),
    "rbnn-bihalf": (36, 41),
    "real-to-binary": (3, 12),
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


class Waiting(AssertionError):
    """A step does what a device would be waited for, or what a captured graph cannot repeat."""


class NoWaiting(TorchDispatchMode):
    """Raises Waiting for values that go to the host, tensors that come from it, and shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        of_shape = name in ("index", "index_put_") and any(t.dtype == torch.bool for t in given[1:])
        if name in TO_HOST or of_shape:
            raise Waiting(name)
        try:
            out = func(*args, **(kwargs or {}))
        except (RuntimeError, NotImplementedError) as fault:  # a tensor without values has none to give
            raise Waiting(f"{name}: {fault}") from fault
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        # A number in the host's memory is given to a kernel as such.
        mixed = len({t.device.type for t in (*given, *made) if t.dim()}) > 1
        if mixed or (name in ("_to_copy", "copy_") and len({t.device.type for t in (*given, *made)}) > 1):
            raise Waiting(f"{name} between devices")
        return out


class NoLists(TorchFunctionMode):
    """Raises Waiting for a tensor that is made of the host's numbers on another device, which no operation tells of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and not out.is_cpu:
            raise Waiting(f"{func.__name__} on a device")
        return out


def look(method: str, **fields: Any) -> None:
    """The third step of a training, on a device that has no values to give; Waiting where it is not one to capture."""
    run = Run(**({"method": method, "prune_rate": 0.9, "width": 0.25} | fields))
    model = build_network(run, 10, 3, 16).to("meta")
    optimizer = build_optimizer(run, model)
    x, y = torch.randn(2, 3, 16, 16, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    for _ in range(2):
        train_step(model, optimizer, x, y)
    with NoLists(), NoWaiting():
        train_step(model, optimizer, x, y)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_step_waits_for_the_device(method: str, scope: str) -> None:
    if scope == "layer" or METHODS[method].scoped:
        look(method, scope=scope)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "resnet18", "skip": ("first", "last", "downsample")},
        {"model": "conv4", "activations": "binary"},
        {"activations": "ede"},
        {"train_affine": True, "model": "resnet20"},
        {"p_pos": 1 / 3, "width": 1.0},
        *[{"scale": scale} for scale in SCALES],
        *[{"score_gradient": gradient} for gradient in SCORE_GRADIENTS],
    ],
    ids=str,
)
def test_nor_does_it_with_other_networks_and_parts(fields: dict[str, Any]) -> None:
    look("mpt-bihalf", **fields)


WAITS = {
    "reads a number": lambda x: x.sum().item(),
    "copies to the host": lambda x: x.cpu(),
    "copies from the host": lambda x: torch.tensor([1.0, 2.0]).to(x.device),
    "makes a tensor of a list": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "branches by a value": lambda x: 1 if x.sum() > 0 else 2,
    "has a shape by values": lambda x: x[x > 0],
}
PLACES = {
    "mask": "mpt_bihalf.masks.kept_count",
    "sign": "mpt_bihalf.transport.round_half_up_each",
    "scale": "mpt_bihalf.scales._kept",
    "weight in use": "mpt_bihalf.kernels.signed",
    "gradient": "mpt_bihalf.gradients._signed",
    "loss": "mpt_bihalf.training.step._totals",
    "optimizer": "torch.optim.sgd._single_tensor_sgd",
}


# Within the backward pass torch asks no mode about its functions.
CASES = {(place, what) for place in PLACES for what in WAITS} - {("gradient", "makes a tensor of a list")}


@pytest.mark.parametrize(("place", "what"), sorted(CASES))
def test_what_waits_is_found_wherever_it_is(place: str, what: str) -> None:
    where, name = PLACES[place].rsplit(".", 1)
    module = import_module(where)
    whole = getattr(module, name)
    seen: list[bool] = []

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        seen.append(True)
        WAITS[what](torch.ones(3, device="meta"))
        return whole(*args, **kwargs)

    with pytest.raises((Waiting, RuntimeError, NotImplementedError)), mock.patch.object(module, name, spoilt):
        look("mpt-bihalf")
    assert seen

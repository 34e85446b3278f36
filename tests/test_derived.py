"""What follows from a frozen weight is worked out once, until the weight is another or holds other values."""

from __future__ import annotations

import pickle
from collections import defaultdict
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import binarize_weights
from mpt_bihalf.derived import Derived, FrozenWeight
from mpt_bihalf.selection import Selection


def derived(frozen: FrozenWeight, weight: Tensor, prune_rate: float = 0.5, p_pos: float = 0.5) -> Derived:
    return frozen.derived(weight, prune_rate, p_pos, defaultdict(Selection))


def test_each_property_says_what_its_name_does() -> None:
    weight = torch.tensor([[3.0, -1.0, 0.0, 2.0], [-4.0, -2.0, -3.0, -1.0]])
    found = Derived(weight, 0.5, 0.25, defaultdict(Selection))
    assert found.order.tolist() == [[1, 2, 3, 0], [0, 2, 1, 3]]
    assert found.nonnegative.tolist() == [[True, False, True, True], [False] * 4]
    assert found.standard.mean.flatten().tolist() == [1.0, -2.5]
    assert found.top_of_all.tolist() == [[True, False, False, False], [False, False, False, True]]  # 1 of 4
    assert found.top_of_kept.tolist() == found.top_of_all.tolist()  # round_half_up(0.25 * 2) = 1


def test_the_same_weight_is_looked_at_once() -> None:
    frozen, weight = FrozenWeight(), nn.Parameter(torch.randn(4, 6), requires_grad=False)
    first = derived(frozen, weight)
    assert derived(frozen, weight) is first
    assert derived(frozen, weight, prune_rate=0.7) is not first
    assert derived(frozen, weight, p_pos=0.7) is not derived(frozen, weight)


@pytest.mark.parametrize("how", ["values", "tensor", "forget"])
def test_it_is_made_anew_for(how: str) -> None:
    frozen, weight = FrozenWeight(), nn.Parameter(torch.randn(4, 6), requires_grad=False)
    first = derived(frozen, weight)
    if how == "values":
        weight.data.numpy()[2, 3] += 1
    elif how == "tensor":
        weight = nn.Parameter(weight.data, requires_grad=False)
    else:
        frozen.forget()
    second = derived(frozen, weight)
    assert second is not first and torch.equal(second.nonnegative, weight >= 0)


def test_nothing_of_inference_mode_is_kept() -> None:
    frozen, weight = FrozenWeight(), nn.Parameter(torch.randn(4, 6), requires_grad=False)
    with torch.inference_mode():
        assert derived(frozen, weight).nonnegative.is_inference()
    assert not derived(frozen, weight).nonnegative.is_inference()


def test_copies_begin_with_nothing() -> None:
    frozen, weight = FrozenWeight(), nn.Parameter(torch.randn(4, 6), requires_grad=False)
    derived(frozen, weight)
    assert all(copy._last is None for copy in (deepcopy(frozen), pickle.loads(pickle.dumps(frozen))))


@pytest.mark.parametrize("method", ["mpt-sign", "mpt-balanced"])
def test_a_layer_of_frozen_weights_keeps_it_from_pass_to_pass(method: str) -> None:
    layer = binarize_weights(nn.Linear(50, 8), method, seed=0)
    part = layer.parametrizations.weight[0]
    layer(torch.randn(2, 50))
    first = part.frozen._last
    layer(torch.randn(2, 50))
    assert first is not None and part.frozen._last is first

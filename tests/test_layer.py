from __future__ import annotations

from collections import defaultdict

import torch

from mpt_bihalf.derived import Derived
from mpt_bihalf.layer import Layer
from mpt_bihalf.selection import Selection


def test_what_follows_from_the_weight_is_worked_out_once() -> None:
    layer = Layer(torch.randn(3, 8), prune_rate=0.5, p_pos=0.25)
    assert layer.derived is layer.derived
    assert layer.derived.top_of_all.sum(1).tolist() == [2] * 3
    assert layer.derived.top_of_kept.sum(1).tolist() == [1] * 3


def test_what_is_known_of_the_weight_already_is_taken() -> None:
    weight = torch.randn(3, 8)
    known = Derived(weight, 0.5, 0.5, defaultdict(Selection))
    assert Layer(weight, known=lambda: known).derived is known


def test_two_layers_share_no_selection() -> None:
    one, other = Layer(torch.randn(1, 8)), Layer(torch.randn(1, 8))
    assert one.selections["mine"] is one.selections["mine"] is not other.selections["mine"]

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mpt_bihalf import MASKS, METHODS, Threshold, binarize_weights, global_score_masks, score_mask
from mpt_bihalf.layer import Layer
from mpt_bihalf.masks import RANKED_WITHIN, InitialMask
from tests.reference import decide, kept_of, one_line_error, score_masks, tensor_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RATES = [0, 0.1, 0.3, 0.35, 0.5, 0.65, 0.9, 0.99, "1/3"]
VALUES = [st.sampled_from([-1.5, -0.5, -0.0, 0.0, 0.5, 1.5, float("inf"), -float("inf")]), st.floats(-9, 9, width=16)]


@st.composite
def layers(draw: st.DrawFn, dims: int = 3) -> Tensor:
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=dims))
    size = int(torch.tensor(shape).prod())
    flat = draw(st.lists(draw(st.sampled_from(VALUES)), min_size=size, max_size=size))
    return torch.tensor(flat, dtype=draw(st.sampled_from(DTYPES))).view(shape)


@pytest.mark.parametrize("scope", ["layer", "filter"])
@given(scores=layers(), rate=st.sampled_from(RATES))
def test_score_mask_keeps_the_top_of_a_stable_sort_of_magnitudes(scope: str, scores: Tensor, rate: float) -> None:
    mask = score_mask(scores, rate, scope)
    assert mask.dtype == scores.dtype
    assert torch.equal(mask.bool(), score_masks([scores], rate, scope)[0])


@pytest.mark.parametrize("rate", [0, 0.123, 0.5, 0.77, 0.999])
def test_score_mask_keeps_exactly_as_many_as_asked(rate: float, device: torch.device) -> None:
    scores = torch.randn(64, 17, 3, 3, generator=torch.Generator().manual_seed(0)).mul(20).round().to(device)
    assert score_mask(scores, rate).sum() == kept_of(scores.numel(), rate)
    assert set(score_mask(scores, rate, "filter").flatten(1).sum(1).tolist()) == {kept_of(153, rate)}


def test_of_equal_magnitudes_the_higher_index_is_kept() -> None:
    scores = torch.tensor([[0.5, -0.5], [0.5, -0.5]])
    assert score_mask(scores, 0.5).tolist() == [[0, 0], [1, 1]]
    assert score_mask(scores, 0.5, "filter").tolist() == [[0, 1], [0, 1]]


def test_score_mask_ranks_logical_order_whatever_the_memory_layout() -> None:
    scores = torch.randn(4, 3, 5, 5).round()
    laid_out = scores.contiguous(memory_format=torch.channels_last)
    for scope in ("layer", "filter"):
        assert torch.equal(score_mask(laid_out, 0.5, scope), score_mask(scores, 0.5, scope))


@pytest.mark.parametrize(
    ("scores", "rate", "scope", "says"),
    [
        (torch.tensor([[float("nan"), 1.0]]), 0.5, "layer", "NaN"),
        (torch.ones(2, 2), 1, "layer", "prune_rate.*1"),
        (torch.ones(2, 2), -0.5, "layer", "prune_rate.*-0.5"),
        (torch.ones(2, 2), 0.5, "network", "network"),
        (torch.ones(2, 2), 0.5, "global", "global"),
        (torch.ones(2, 2, dtype=torch.int32), 0.5, "layer", "int32"),
    ],
)
def test_score_mask_says_in_one_line_what_is_wrong(scores: Tensor, rate: float, scope: str, says: str) -> None:
    with one_line_error(says):
        score_mask(scores, rate, scope)


@given(st.lists(layers(dims=2), min_size=1, max_size=4), st.sampled_from(RATES))
def test_global_masks_keep_the_top_of_all_layers_and_spare_each_layers_best(scores: list[Tensor], rate: float) -> None:
    total = sum(s.numel() for s in scores)
    if kept_of(total, rate) < len(scores):
        with one_line_error(f"keeps {kept_of(total, rate)} of {total} weights"):
            global_score_masks(scores, rate)
        return
    masks = global_score_masks(scores, rate)
    assert sum(int(m.sum()) for m in masks) == kept_of(total, rate)
    assert all(m.any() for m in masks)
    assert [m.dtype for m in masks] == [s.dtype for s in scores]
    for mask, expected in zip(masks, score_masks(scores, rate, "global"), strict=True):
        assert torch.equal(mask.bool(), expected)


def test_global_ties_fall_in_the_order_of_the_layers(device: torch.device) -> None:
    masks = global_score_masks([torch.ones(2, 2, device=device), torch.ones(2, 2, device=device)], 0.5)
    # Each layer's last one is its best; the two other places go to the later layer.
    assert [m.flatten().tolist() for m in masks] == [[0, 0, 0, 1], [0, 1, 1, 1]]


def test_a_layer_about_to_vanish_keeps_its_best_at_the_cost_of_the_lowest_kept_elsewhere() -> None:
    strong, weak = torch.tensor([[5.0, 9.0, 7.0, 6.0]]), torch.tensor([[0.1, 0.3, 0.2, 0.0]])
    masks = global_score_masks([weak, strong], 0.5)
    assert [m.tolist() for m in masks] == [[[0, 1, 0, 0]], [[0, 1, 1, 1]]]


def test_global_masks_of_one_layer_are_its_layer_mask() -> None:
    scores = torch.randn(5, 7)
    assert torch.equal(global_score_masks([scores], 0.7)[0], score_mask(scores, 0.7))


@pytest.mark.parametrize(
    ("scores", "rate", "says"),
    [
        ([torch.ones(1, 4), torch.tensor([[float("nan")]])], 0, "layer 1 .*NaN"),
        ([torch.ones(1, 4)], 1, "prune_rate"),
        ([torch.ones(1, 4), torch.ones(1, 4)], 0.9, "keeps 1 of 8 weights, fewer than the 2"),
    ],
)
def test_global_masks_say_in_one_line_what_is_wrong(scores: list[Tensor], rate: float, says: str) -> None:
    with one_line_error(says):
        global_score_masks(scores, rate)


@pytest.mark.parametrize(
    ("rule", "method"),
    [("edge-popup", "mpt-sign"), ("magnitude", "magnitude-sign"), ("extremes", "magnitude-bihalf")]
    + [("balanced", "mpt-balanced")],
)
@given(weight=layers(), rate=st.sampled_from(RATES), p_pos=st.sampled_from([0, 0.3, 0.5, 0.65, 1]), data=st.data())
def test_each_mask_rule_keeps_what_its_method_says(
    rule: str, method: str, weight: Tensor, rate: float, p_pos: float, data: st.DataObject
) -> None:
    flat = data.draw(st.lists(VALUES[0], min_size=weight.numel(), max_size=weight.numel()))
    scores = tensor_of(flat, weight).to(weight.dtype)
    mask = MASKS[rule](Layer(weight, scores, rate, p_pos))
    expected, _ = decide(method, [weight], [scores], rate, p_pos)[0]
    assert mask.dtype == torch.bool and torch.equal(mask, expected)


def test_extremes_prune_the_middle_ranks() -> None:
    weight = torch.tensor([[0.0, 7.0, -3.0, 1.0, 9.0, -8.0, 2.0, 5.0]])
    mask = MASKS["extremes"](Layer(weight, prune_rate=0.5))
    assert weight[mask].tolist() == [7, -3, 9, -8]


@pytest.mark.slow
@pytest.mark.parametrize("rule", [name for name, rule in MASKS.items() if rule in RANKED_WITHIN])
def test_each_rule_keeps_more_and_more_as_less_is_pruned(rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, scores = (torch.randn(3, 40, generator=generator) for _ in range(2))
    rates = [i / 200 for i in range(199, -1, -1)]
    for p_pos in (0, 0.25, 0.5, 0.77, 1):
        masks = [MASKS[rule](Layer(weight, scores, rate, p_pos)) for rate in rates]
        whole = rule in ("edge-popup", "magnitude")
        expected = [kept_of(120, r) if whole else 3 * kept_of(40, r) for r in rates]
        assert [int(m.sum()) for m in masks] == expected
        assert all((fewer <= more).all() for fewer, more in pairwise(masks))


def test_of_each_rule_it_is_known_what_it_ranks_within() -> None:
    assert {*RANKED_WITHIN} == {rule for rule in MASKS.values() if not isinstance(rule, InitialMask | Threshold)}


def test_threshold_keeps_what_is_larger_whatever_the_rate() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.3], [-0.31, 0.0, 0.05]])
    assert Threshold(0.2)(Layer(weight, prune_rate=0.9)).tolist() == [[False, False, True], [True, False, False]]
    uniform = (torch.rand(50, 20, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * sqrt(6 / (70 * 9))
    mask = MASKS["threshold"](Layer(uniform))
    assert mask.float().mean() == pytest.approx(0.6, abs=0.02)
    assert torch.equal(mask, uniform.abs() > 0.4 * sqrt(6 / (70 * 9)))
    for tau in (-0.1, float("nan"), float("inf")):
        with one_line_error("tau must be a finite number of at least 0"):
            Threshold(tau)


def test_a_signed_supermask_is_the_ternary_training_of_a_latent_weight() -> None:
    """w = c r T(m), dL/dm = c r g over frozen signs r, against V = r m, w = c T(V), dL/dV = c g."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 12, generator=g, dtype=torch.float64), torch.randn(40, 6, generator=g, dtype=torch.float64)
    bound, c = sqrt(6 / (12 + 6)), sqrt(3 / 12)
    m = (torch.rand(6, 12, generator=g, dtype=torch.float64) * 2 - 1) * bound
    r = torch.randint(2, (6, 12), generator=g).double() * 2 - 1
    model = nn.Sequential(nn.Linear(12, 6, bias=False)).double()
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]

    def constant(layer: Layer, mask: Tensor | None) -> Tensor:
        return layer.weight.new_tensor(c)

    method = replace(METHODS["magnitude-sign"], name="signed-supermask", mask=Threshold(0.4 * bound), scale=constant)
    with torch.no_grad():
        model[0].weight.copy_(r * m)
    binarize_weights(model, method, init="keep")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    momentum = torch.zeros_like(m)
    for _ in range(20):
        T = torch.where(m.abs() > 0.4 * bound, m.sign(), 0)
        w = (c * r * T).requires_grad_()
        F.mse_loss(x @ w.T, y).backward()
        assert w.grad is not None
        assert torch.equal(model[0].weight, w)
        momentum = 0.9 * momentum + c * r * w.grad
        m = m - 0.05 * momentum
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    assert torch.allclose(model[0].parametrizations.weight.original, r * m, atol=1e-12)  # type: ignore[union-attr]
    assert 0 < (model[0].weight != 0).double().mean() < 0.5  # of 0.6 at the start


def test_rules_that_rank_other_rows_share_no_hints() -> None:
    g = torch.Generator().manual_seed(0)
    layer = Layer(torch.randn(64, 300, generator=g), torch.randn(64, 300, generator=g), 0.5, scope="filter")
    for _ in range(2):
        assert int(MASKS["magnitude"](layer).sum()) == int(MASKS["edge-popup"](layer).sum()) == 64 * 150

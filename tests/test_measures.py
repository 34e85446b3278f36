from __future__ import annotations

from math import log2, nan, prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpt_bihalf.measures import (
    bernoulli_entropy,
    changes,
    cut_off,
    entropy,
    filter_entropy,
    filter_positive_share,
    flips,
    kept_share,
    mask_change,
    positive_share,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
EVEN = [1.0, -1, 1, -1]
PLUS = [1.0, 1, 1, 1]
MINUS = [-1.0, -1, -1, -1]
NONE = [0.0, 0, 0, 0]
THREE = [1.0, 0, -1, 1]


def plain_entropy(p: float) -> float:
    return -sum(q * log2(q) for q in (p, 1 - p) if q > 0)


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1])
def test_entropy_of_a_bit_is_that_of_its_share(share: float, device: torch.device) -> None:
    found = bernoulli_entropy(torch.tensor(share, dtype=torch.float64, device=device))
    assert found.item() == pytest.approx(plain_entropy(share), abs=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_is_exactly_one_at_an_even_split_and_zero_at_none_or_all(dtype: torch.dtype) -> None:
    binary = torch.tensor([EVEN, PLUS, MINUS, NONE], dtype=dtype)
    assert filter_entropy(binary).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert entropy(binary).item() == pytest.approx(1.0)
    assert [entropy(row.view(1, -1)).item() for row in binary] == [1.0, 0.0, 0.0, 0.0]


def test_entropy_and_shares_are_of_the_kept_weights(device: torch.device) -> None:
    binary = torch.tensor([THREE, NONE, EVEN], device=device).view(3, 2, 2)
    assert filter_positive_share(binary).tolist() == pytest.approx([2 / 3, nan, 0.5], nan_ok=True)
    assert filter_entropy(binary).tolist() == pytest.approx([plain_entropy(2 / 3), 0, 1], abs=1e-6)
    assert positive_share(binary).item() == pytest.approx(4 / 7)
    assert entropy(binary).item() == pytest.approx(plain_entropy(4 / 7), abs=1e-6)
    assert kept_share(binary).item() == pytest.approx(7 / 12)


def test_share_of_a_layer_that_keeps_nothing_is_nan_and_its_entropy_zero() -> None:
    assert positive_share(torch.zeros(2, 3)).isnan()
    assert entropy(torch.zeros(2, 3)) == 0 and kept_share(torch.zeros(2, 3)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_flips_count_sign_changes_of_what_stays_kept(dtype: torch.dtype, device: torch.device) -> None:
    before = torch.tensor([[1.0, 1, 1, -1, -1, -1, 0, 0, 0]], dtype=dtype, device=device)
    after = torch.tensor([[1.0, -1, 0, -1, 1, 0, 1, -1, 0]], dtype=dtype, device=device)
    assert flips(before, after) == (1, 1)
    found = flips(torch.full_like(before, -1), after)
    assert (found.to_positive.item(), found.to_negative.item()) == (3, 0)
    assert found.to_positive.dtype == torch.int64


@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_change_is_the_share_kept_in_only_one_state(dtype: torch.dtype) -> None:
    before = torch.tensor([[1.0, -1, 0, 0, 1]], dtype=dtype)
    after = torch.tensor([[-1.0, 0, 1, 0, 1]], dtype=dtype)
    assert mask_change(before, after).item() == pytest.approx(2 / 5)
    assert mask_change(before, -before) == 0 and mask_change(torch.zeros(1, 4), torch.ones(1, 4)) == 1


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40))
def test_measures_agree_with_plain_counts(bits: list[float]) -> None:
    binary = torch.tensor([bits, [-b for b in bits]])
    plus, minus = bits.count(1.0), bits.count(-1.0)
    assert kept_share(binary).item() == pytest.approx((plus + minus) / len(bits))
    assert [n.item() for n in flips(binary[:1], binary[1:])] == [minus, plus]
    if plus + minus:
        shares = [plus / (plus + minus), minus / (plus + minus)]
        assert filter_positive_share(binary).tolist() == pytest.approx(shares)
        assert filter_entropy(binary).tolist() == pytest.approx([plain_entropy(s) for s in shares], abs=1e-5)
        assert positive_share(binary) == 0.5 and entropy(binary) == 1.0


@pytest.mark.parametrize("shares", [(0.45, 0.1, 0.45), (0.05, 0.9, 0.05), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
@pytest.mark.parametrize("shape", [(3, 5, 3, 3), (40, 30), (2, 1)])
def test_all_changes_at_once_are_those_of_each_measure(shape: tuple[int, ...], shares: tuple[float, ...]) -> None:
    generator, chances = torch.Generator().manual_seed(1), torch.tensor(shares, dtype=torch.float64)
    drawn = torch.multinomial(chances, 2 * prod(shape), replacement=True, generator=generator)
    before, after = drawn.sub_(1).to(torch.int8).view(2, *shape)
    apart = [
        entropy(after),
        filter_entropy(after).mean(),
        positive_share(after),
        kept_share(after),
        *flips(before, after),
        mask_change(before, after),
    ]
    expected = torch.stack([value.float() for value in apart])
    assert torch.equal(changes(before, after).view(torch.int32), expected.view(torch.int32))


def test_even_split_of_more_weights_than_float32_can_count_still_has_entropy_one() -> None:
    binary = torch.ones(1, 2 * (2**24 + 1), dtype=torch.int8)
    binary[:, ::2] = -1
    assert entropy(binary) == 1.0


@pytest.mark.parametrize("measure", [positive_share, entropy, filter_entropy, filter_positive_share, kept_share])
def test_measures_need_no_values_on_the_host(measure: object) -> None:
    assert measure(torch.empty(3, 4, device="meta")).is_meta


def test_the_cut_off_lies_half_way_between_the_signs() -> None:
    weight = torch.tensor([[-3.0, 1, 2, 8], [1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8], [-2, -1, 0, 3]])
    binary = torch.tensor([[-1.0, -1, 1, 1], [1, 1, 1, 1], [-1, -1, -1, -1], [0, 0, 0, 0], [-1, 0, 0, 1]])
    assert cut_off(weight, binary).nan_to_num(99).tolist() == [1.5, 1, 4, 99, 0.5]

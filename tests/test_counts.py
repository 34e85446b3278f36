from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpt_bihalf.counts import as_fraction, fraction_within, kept_count, round_half_up, round_half_up_each
from tests.reference import one_line_error

decimals = st.decimals(0, 1, places=4)


@pytest.mark.parametrize(
    ("x", "n", "count"),
    [
        (0.35, 10, 4),  # 3.5, although the binary 0.35 lies below 35/100
        (0.3, 5, 2),  # 1.5
        (0.5, 9, 5),
        (0.5, 8, 4),
        (0.1, 5, 1),
        (0.1, 4, 0),
        (0, 7, 0),
        (1, 7, 7),
        (0.7, 0, 0),
        ("1/3", 3, 1),
        (Fraction(1, 6), 3, 1),
        (Decimal("0.15"), 10, 2),
        (np.float32(0.35), 10, 4),
        (1e-5, 50_000, 1),
    ],
)
def test_round_half_up_counts_by_the_written_decimal(x: float, n: int, count: int) -> None:
    assert round_half_up(x, n) == count


@given(decimals, st.integers(0, 10**12))
def test_round_half_up_agrees_with_decimal_arithmetic(x: Decimal, n: int) -> None:
    assert round_half_up(float(x), n) == int((x * n).quantize(Decimal(1), ROUND_HALF_UP))


@given(decimals, st.integers(0, 10**9))
def test_kept_and_pruned_make_up_the_whole(rate: Decimal, n: int) -> None:
    assert kept_count(n, float(rate)) + int((rate * n).quantize(Decimal(1), ROUND_HALF_UP)) == n


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20), st.one_of(decimals, st.floats(0, 1)))
def test_round_half_up_each_counts_every_element_alike(n: list[int], x: float) -> None:
    assert round_half_up_each(x, torch.tensor(n), 500).tolist() == [round_half_up(x, i) for i in n]


@pytest.mark.parametrize("x", [0.1234567890123456789, "0.33333333333333333333333333", Fraction(1, 3), 5e-324])
def test_round_half_up_each_does_not_overflow(x: float, device: torch.device) -> None:
    n = torch.tensor([[0], [1], [4_607], [4_608]], device=device)
    counts = round_half_up_each(x, n, 4_608)
    assert counts.device == n.device and counts.shape == n.shape and counts.dtype == torch.int64
    assert counts.flatten().tolist() == [round_half_up(x, i) for i in (0, 1, 4_607, 4_608)]


@pytest.mark.parametrize("x", [float("nan"), float("inf"), None, "half", "1/0", ""])
def test_what_is_no_finite_number_is_an_error_with_its_name(x: float) -> None:
    with one_line_error("prune_rate must be a finite number"):
        as_fraction(x, "prune_rate")


@pytest.mark.parametrize(("x", "below_one"), [(-0.1, False), (1.0001, False), ("-1/9", True), (1, True), (1.5, True)])
def test_what_lies_outside_the_interval_is_an_error_with_its_name_and_value(x: float, below_one: bool) -> None:
    with one_line_error(f"p_pos must lie in .*{x}"):
        fraction_within(x, "p_pos", below_one=below_one)


def test_the_ends_of_the_interval_are_inside() -> None:
    assert [fraction_within(x, "p_pos") for x in (0, 1)] == [0, 1]
    assert fraction_within(0, "prune_rate", below_one=True) == 0


def test_equal_numbers_written_otherwise_are_not_mixed_up() -> None:
    """A count asked for before is looked up: 0.1 stands for 1/10, Fraction(0.1) for the binary number beside it."""
    n = 10**18
    assert [round_half_up(x, n) for x in (0.1, Fraction(0.1), "0.1", Decimal("0.1"), 0.1)] == [
        10**17,
        round(Fraction(0.1) * n),
        10**17,
        10**17,
        10**17,
    ]

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_bihalf.experiments import Grid, parse_rates

TENTHS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_a_grid_has_every_combination_the_last_axis_varied_fastest() -> None:
    grid = Grid([{"lr": 1.0}, {"lr": 2.0}], [{"seed": 3, "width": 0.5}], [{"epochs": 4}, {"epochs": 5}])
    assert grid.count == 4
    assert [*grid] == [{"lr": lr, "seed": 3, "width": 0.5, "epochs": e} for lr, e in product((1.0, 2.0), (4, 5))]
    assert [*Grid()] == [{}]


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("0.1..0.9", TENTHS),
        ("0.1..0.9:0.2", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("0.5", [0.5]),
        ("0.1,0.5,0.95", [0.1, 0.5, 0.95]),
        ("0..0.2,0.95", [0.0, 0.1, 0.2, 0.95]),
        ("0", [0.0]),
        ("0.95,0.5,0.1,0.5", [0.1, 0.5, 0.95]),
        ("0.5,0.50,0.4..0.6,5e-1", [0.4, 0.5, 0.6]),
        ("0.1..0.35", [0.1, 0.2, 0.3]),
        ("0.3..0.3", [0.3]),
        ("0..0.9:0.3", [0.0, 0.3, 0.6, 0.9]),
        (" 0.1 .. 0.3 : 0.1 , .5", [0.1, 0.2, 0.3, 0.5]),
        ("0.99..0.999:0.003", [0.99, 0.993, 0.996, 0.999]),
    ],
)
def test_rates_are_the_decimals_that_were_written(text: str, rates: list[float]) -> None:
    assert parse_rates(text) == rates
    assert [repr(rate) for rate in parse_rates(text)] == [repr(rate) for rate in rates]


@given(st.integers(0, 999), st.integers(0, 999), st.integers(1, 999))
def test_a_range_is_what_counting_in_thousandths_gives(a: int, b: int, step: int) -> None:
    first, last = sorted((a, b))
    text = f"{first / 1000}..{last / 1000}:{step / 1000}"
    assert parse_rates(text) == [n / 1000 for n in range(first, last + 1, step)]


BAD_RATES = ["0.1..", "..", "..0.9", "", " ", ",", "0.1,", "0.1,,0.5", "0.1..0.9:0", "0.1..0.9:-0.1", "0.1..0.9:"]
BAD_RATES += ["0.1..0.9:nan", "0.1..0.9:inf", "0.1..0.9:1e-9", "0.9..0.1", "0.1..0.2..0.3", "0.1:0.2", "0.1...0.9"]
BAD_RATES += ["nan", "inf", "-inf", "sNaN", "1", "1.0", "1e5", "-0.1", "-1e-400", "0.5%", "50%", "½", "half", "0,5;0.6"]
BAD_RATES += ["0.99999999999999999999", "1e-400", "1e-999999999", "0.5..0.6:1e-99999999", "0.1..1", "0x1", "0.5\n0.6"]


@pytest.mark.parametrize("text", BAD_RATES)
def test_bad_rates_are_refused_with_what_was_written(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_rates(text)
    assert str(error.value).startswith(f"rates {text!r}: ")
    assert "\n" not in str(error.value)


@given(st.text(st.sampled_from("0123456789.,:-+eE nainf_"), max_size=12))
def test_any_text_gives_rates_in_order_or_a_value_error(text: str) -> None:
    try:
        rates = parse_rates(text)
    except ValueError:
        return
    assert rates == sorted(set(rates))
    assert all(0 <= rate < 1 for rate in rates)

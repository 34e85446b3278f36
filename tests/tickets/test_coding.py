from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bernoulli

from mpt_bihalf.tickets.coding import CHUNK, Decoder, bound, encode
from tests.reference import one_line_error


def bits(n: int, ones: int, seed: int = 0) -> np.ndarray:
    row = np.zeros(n, dtype=bool)
    row[np.random.default_rng(seed).permutation(n)[:ones]] = True
    return row


@pytest.mark.parametrize(("n", "ones"), [(1000, 100), (7, 3), (5, 5), (5, 0), (0, 0)])
def test_the_bound_is_the_entropy_of_the_share(n: int, ones: int) -> None:
    entropy = bernoulli(ones / n).entropy() / np.log(2) if n else 0.0
    assert bound(n, ones) == pytest.approx(n * float(entropy), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "ones"), [(0, 0), (1, 0), (1, 1), (9, 4), (4096, 4096), (100_000, 10_000), (CHUNK + 5, 7)]
)
def test_rows_come_back_as_they_were(n: int, ones: int) -> None:
    first, second = bits(n, ones), bits(33, 11, seed=1)
    decoder = Decoder(encode([first, second]))
    assert np.array_equal(decoder.decode(n, ones), first)
    assert np.array_equal(decoder.decode(33, 11), second)
    decoder.end()


@pytest.mark.parametrize("ones", [100_000, 500_000, 10])
def test_a_row_is_stored_within_a_thousandth_of_its_bound(ones: int) -> None:
    packed = encode([bits(1_000_000, ones)])
    assert bound(1_000_000, ones) / 8 <= len(packed) <= 1.001 * bound(1_000_000, ones) / 8 + 8


def test_what_was_not_written_so_is_refused() -> None:
    packed = encode([bits(1000, 100)])
    for wrong in (packed[:-1], packed[:-4], packed + b"\1\0\0\0", packed + b"\0\0\0\0", packed[4:], b""):
        with one_line_error():
            decoder = Decoder(wrong)
            decoder.decode(1000, 100)
            decoder.end()
    with one_line_error("as many"):
        Decoder(packed).decode(1000, 101)

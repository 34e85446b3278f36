from __future__ import annotations

from statistics import mean, stdev

import pytest
import torch

from mpt_bihalf import SCALES
from mpt_bihalf.standardise import Standard, centred


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 3, 3)])
def test_each_filter_has_mean_0_and_unbiased_deviation_1(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 5).to(dtype)
    around, _, deviation, _ = centred(weight)
    x = around / deviation
    assert x.dtype == torch.promote_types(dtype, torch.float32) and x.shape == (shape[0], weight[0].numel())
    for row, before in zip(x.tolist(), weight.flatten(1).tolist(), strict=True):
        assert mean(row) == pytest.approx(0, abs=1e-5) and stdev(row) == pytest.approx(1, rel=1e-5)
        assert row == pytest.approx([(w - mean(before)) / stdev(before) for w in before], rel=1e-4, abs=1e-4)


def test_equal_weights_stay_finite() -> None:
    for weight in (torch.full((2, 4), 0.5), torch.randn(3, 1)):
        around, _, deviation, equal = centred(weight)
        assert deviation.eq(1).all() and around.eq(0).all() and equal.all()


@pytest.mark.parametrize("shape", [(5, 7), (3, 300_000), (700, 2, 3, 3)])
def test_in_parts_the_same_is_found(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.1
    weight[0] = 0.5
    found = Standard.of(weight)
    around, mean, deviation, _ = centred(weight)
    assert torch.equal(found.positive, around >= 0)
    torch.testing.assert_close((found.mean, found.deviation), (mean, deviation))


@pytest.mark.parametrize("size", [1, 9, 576, 4608])
@pytest.mark.parametrize("value", [0.1, 0.3, -0.7, 1 / 3, 0.0, 1e-30, 1e4])
def test_equal_weights_are_their_mean(value: float, size: int) -> None:
    """Whatever a sum of them rounds to."""
    weight = torch.full((2, size), value)
    _, mean, deviation, equal = centred(weight)
    assert equal.all() and deviation.eq(1).all() and mean.eq(weight[0, 0]).all()
    assert Standard.of(weight).positive.all() and SCALES["power-of-two"](weight, None).eq(1).all()
    assert SCALES["power-of-two"](weight, torch.zeros_like(weight, dtype=torch.bool)).eq(0).all()

from __future__ import annotations

from statistics import mean, stdev

import pytest
import torch

from mpt_bihalf.standardise import Standard, centred


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 3, 3)])
def test_each_filter_has_mean_0_and_unbiased_deviation_1(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 5).to(dtype)
    around, _, deviation = centred(weight)
    x = around / deviation
    assert x.dtype == torch.promote_types(dtype, torch.float32) and x.shape == (shape[0], weight[0].numel())
    for row, before in zip(x.tolist(), weight.flatten(1).tolist(), strict=True):
        assert mean(row) == pytest.approx(0, abs=1e-5) and stdev(row) == pytest.approx(1, rel=1e-5)
        assert row == pytest.approx([(w - mean(before)) / stdev(before) for w in before], rel=1e-4, abs=1e-4)


def test_equal_weights_stay_finite() -> None:
    for weight in (torch.full((2, 4), 0.5), torch.randn(3, 1)):
        around, _, deviation = centred(weight)
        assert deviation.eq(1).all() and around.eq(0).all()


@pytest.mark.parametrize("shape", [(5, 7), (3, 300_000), (700, 2, 3, 3)])
def test_in_parts_the_same_is_found(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.1
    weight[0] = 0.5
    found = Standard.of(weight)
    around, mean, deviation = centred(weight)
    assert torch.equal(found.positive, around >= 0)
    torch.testing.assert_close((found.mean, found.deviation), (mean, deviation))

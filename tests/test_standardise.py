from __future__ import annotations

from statistics import mean, stdev

import pytest
import torch
from torch import Tensor

from mpt_bihalf import SCALES, kernels
from mpt_bihalf.layer import Layer
from mpt_bihalf.standardise import Standard


def by_hand(row: list[float], kept: list[bool]) -> tuple[float, float, float]:
    """Mean, unbiased deviation, and the mean magnitude of what is kept, standardised."""
    middle, spread = mean(row), stdev(row)
    return middle, spread, mean(abs(w - middle) / spread for w, k in zip(row, kept, strict=True) if k)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 3, 3), (3, 20_000), (100, 2, 3, 3)])
def test_each_filter_is_standardised_by_itself(shape: tuple[int, ...], dtype: torch.dtype, pruned: bool) -> None:
    g = torch.Generator().manual_seed(0)
    weight = (torch.randn(shape, generator=g) * 3 + 5).to(dtype)
    mask = torch.rand(shape, generator=g) < 0.5 if pruned else None
    kept = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    kept[:, 0] = True
    found = Standard.of(weight, mask)
    wide = torch.promote_types(dtype, torch.float32)
    assert {found.mean.dtype, found.deviation.dtype, found.magnitude.dtype} == {wide}
    rows = weight.flatten(1).tolist()
    for i, (row, chosen) in enumerate(zip(rows, kept.flatten(1).tolist(), strict=True)):
        numbers = found.mean[i].item(), found.deviation[i].item(), found.magnitude[i].item()
        assert numbers == pytest.approx(by_hand(row, chosen), rel=1e-5)
        assert found.positive[i].tolist() == [w >= found.mean[i].item() for w in row]


SHAPES = [(2, 1), (2, 2), (5, 7), (3, 255), (3, 256), (3, 257), (3, 511), (2, 4608), (300, 1000), (3, 300_000)]


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_or_not_the_bits_are_the_same(
    shape: tuple[int, int], pruned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=g) + 0.1
    weight[0] = 0.3
    mask = torch.rand(shape, generator=g) < 0.5 if pruned else None
    of_loss, y = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    factor = torch.rand(shape[0], 1, generator=g)

    def found() -> list[Tensor]:
        out = torch.empty(shape)
        kernels.through_standardised(of_loss, y, y.sigmoid(), factor, 3.7, out)
        return [*Standard.of(weight, mask), out]

    compiled = found()
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    for one, other in zip(compiled, found(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", ["compiled", "numpy", "torch"])
@pytest.mark.parametrize("size", [1, 9, 576, 4608])
@pytest.mark.parametrize("value", [0.1, 0.3, -0.7, 1 / 3, 0.0, 1e-30, 1e4])
def test_equal_weights_are_their_mean(value: float, size: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a sum of them rounds to."""
    if form == "numpy":
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    if form == "torch":
        monkeypatch.setattr(kernels, "suit", lambda *tensors: False)
    weight = torch.full((2, size), value)
    found = Standard.of(weight)
    assert found.positive.all() and found.deviation.eq(1).all() and found.magnitude.eq(0).all()
    assert found.mean.eq(weight[0, 0]).all()
    assert SCALES["power-of-two"](Layer(weight), None).eq(1).all()
    assert SCALES["power-of-two"](Layer(weight), torch.zeros_like(weight, dtype=torch.bool)).eq(0).all()

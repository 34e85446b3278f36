from __future__ import annotations

import torch

from mpt_bihalf.filters import few_filters, filters, wide_rows


def test_a_row_for_each_filter_however_the_weight_lies() -> None:
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    expected = [list(range(12)), list(range(12, 24))]
    assert filters(weight).tolist() == expected
    assert filters(weight.contiguous(memory_format=torch.channels_last)).tolist() == expected
    assert filters(torch.empty(3, 0, 2)).shape == (3, 0)
    assert wide_rows(weight.bfloat16()).dtype == torch.float32 and wide_rows(weight.double()).dtype == torch.float64


def test_parts_make_up_the_whole() -> None:
    for shape in ((1, 600_000), (7, 100_000), (500, 9), (2, 1)):
        a, b = torch.rand(shape), torch.rand(shape[0], 1)
        parts = list(few_filters(a, b))
        assert torch.equal(torch.cat([part for part, _ in parts]), a) and torch.equal(
            torch.cat([p for _, p in parts]), b
        )

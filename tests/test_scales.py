from __future__ import annotations

from math import sqrt

import pytest
import torch

from mpt_bihalf import SCALES
from tests.reference import kaiming_scale, l1_scale

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
CLOSED_FORMS = {"kaiming": lambda weight, mask: kaiming_scale(mask), "l1": l1_scale}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("name", list(SCALES))
def test_scale_is_its_closed_form_over_the_kept_weights(
    name: str, share: float, dtype: torch.dtype, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 5, 3, 3, generator=generator).to(device, dtype)
    mask = (torch.rand(6, 5, 3, 3, generator=generator) < share).to(device)
    alpha = SCALES[name](weight, mask)
    assert alpha.dtype == dtype and alpha.device == weight.device and alpha.dim() == 0
    assert float(alpha) == pytest.approx(CLOSED_FORMS[name](weight, mask), rel=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", list(SCALES))
def test_no_mask_is_a_mask_of_ones(name: str) -> None:
    weight = torch.randn(4, 7, dtype=torch.float64)
    everything = torch.ones_like(weight, dtype=torch.bool)
    assert float(SCALES[name](weight, None)) == pytest.approx(float(SCALES[name](weight, everything)), rel=1e-14)


def test_kaiming_is_the_root_of_two_over_the_connections_when_nothing_is_pruned() -> None:
    assert float(SCALES["kaiming"](torch.zeros(8, 2, 3, 3, dtype=torch.float64), None)) == sqrt(2 / 18)


@pytest.mark.parametrize("name", list(SCALES))
def test_a_layer_that_keeps_nothing_has_scale_zero(name: str, device: torch.device) -> None:
    weight = torch.randn(3, 4, device=device)
    assert SCALES[name](weight, torch.zeros_like(weight, dtype=torch.bool)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", list(SCALES))
def test_half_precision_does_not_overflow(name: str, masked: bool, dtype: torch.dtype) -> None:
    weight = torch.full((400, 1_000), 2.0, dtype=dtype)  # count and sum lie beyond the 65,504 of float16
    mask = torch.ones_like(weight, dtype=torch.bool) if masked else None
    expected = {"kaiming": sqrt(2 / 1_000), "l1": 2.0}[name]
    assert float(SCALES[name](weight, mask)) == pytest.approx(expected, rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", list(SCALES))
def test_scale_needs_no_values_on_the_host(name: str) -> None:
    weight = torch.empty(3, 4, device="meta")
    assert SCALES[name](weight, None).is_meta
    assert SCALES[name](weight, torch.empty(3, 4, device="meta", dtype=torch.bool)).is_meta

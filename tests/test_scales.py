from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

from mpt_bihalf import MASKS, SCALES
from mpt_bihalf.layer import Layer
from mpt_bihalf.scales import scale_of
from tests.reference import filter_scale, kaiming_scale, l1_scale, median_scale, power_of_two_scale

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
CLOSED_FORMS = {
    "kaiming": lambda weight, mask: kaiming_scale(mask),
    "l1": l1_scale,
    "power-of-two": lambda weight, mask: power_of_two_scale(weight.double(), mask),
    "l1-filter": filter_scale,
    "least-squares": filter_scale,  # of the signs of W
    "one": lambda weight, mask: float(mask.any()),
    # Where they begin.
    "learned": lambda weight, mask: torch.full((len(weight), 1, 1, 1), kaiming_scale(mask), dtype=torch.float64),
    "learned-l1-filter": lambda weight, mask: torch.where(
        mask.flatten(1).any(1).view(-1, 1, 1, 1), filter_scale(weight, mask), filter_scale(weight, weight == weight)
    ),
    "learned-median": lambda weight, mask: median_scale(weight.double(), mask),
}
FOR_A_LAYER = ("kaiming", "l1", "one")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("name", list(SCALES))
def test_scale_is_its_closed_form_over_the_kept_weights(
    name: str, share: float, dtype: torch.dtype, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 5, 3, 3, generator=generator).to(device, dtype)
    mask = (torch.rand(6, 5, 3, 3, generator=generator) < share).to(device)
    alpha = SCALES[name](Layer(weight), mask)
    assert alpha.dtype == dtype and alpha.device == weight.device
    assert alpha.shape == (() if name in FOR_A_LAYER else (6, 1, 1, 1))
    expected = torch.as_tensor(CLOSED_FORMS[name](weight, mask), dtype=torch.float64)
    assert torch.allclose(alpha.double().cpu(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", list(SCALES))
def test_no_mask_is_a_mask_of_ones(name: str) -> None:
    weight = torch.randn(4, 7, dtype=torch.float64)
    everything = torch.ones_like(weight, dtype=torch.bool)
    assert torch.allclose(SCALES[name](Layer(weight), None), SCALES[name](Layer(weight), everything), rtol=1e-14)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", list(SCALES))
def test_the_layout_in_memory_does_not_matter(name: str, masked: bool) -> None:
    for seed in range(20):
        weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
        mask = weight.abs() > 0.5 if masked else None
        last, mask_last = (
            None if t is None else t.contiguous(memory_format=torch.channels_last) for t in (weight, mask)
        )
        assert torch.equal(SCALES[name](Layer(last), mask_last), SCALES[name](Layer(weight), mask)), seed


def test_a_module_is_a_scale_too() -> None:
    class Half(torch.nn.Module):
        def forward(self, layer: Layer, mask: Tensor | None) -> Tensor:
            return layer.weight.new_full((), 0.5)

    assert float(scale_of(Half(), Layer(torch.randn(2, 3)), None)) == 0.5


def test_kaiming_is_the_root_of_two_over_the_connections_when_nothing_is_pruned() -> None:
    assert float(SCALES["kaiming"](Layer(torch.zeros(8, 2, 3, 3, dtype=torch.float64)), None)) == sqrt(2 / 18)


@pytest.mark.parametrize("name", [name for name in SCALES if not name.startswith("learned")])
def test_a_layer_that_keeps_nothing_has_scale_zero(name: str, device: torch.device) -> None:
    weight = torch.randn(3, 4, device=device)
    assert not SCALES[name](Layer(weight), torch.zeros_like(weight, dtype=torch.bool)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", list(SCALES))
def test_half_precision_does_not_overflow(name: str, masked: bool, dtype: torch.dtype) -> None:
    weight = torch.full((400, 1_000), 2.0, dtype=dtype)  # count and sum lie beyond the 65,504 of float16
    mask = torch.ones_like(weight, dtype=torch.bool) if masked else None
    fan = {"kaiming": sqrt(2 / 1_000), "learned": sqrt(2 / 1_000)}
    expected = ({"power-of-two": 1.0, "one": 1.0} | fan).get(name, 2.0)
    assert SCALES[name](Layer(weight), mask).flatten().tolist() == pytest.approx(
        [expected] * SCALES[name](Layer(weight), mask).numel(), rel=torch.finfo(dtype).eps
    )


def test_the_power_of_two_scale_is_an_exact_power_whatever_the_spread() -> None:
    rows = torch.randn(40, 500, generator=torch.Generator().manual_seed(0)) ** torch.tensor([1, 3, 5, 9]).repeat(
        10
    ).unsqueeze(1)
    alpha = SCALES["power-of-two"](Layer(rows * 10.0 ** torch.linspace(-7, 7, 40).unsqueeze(1)), None).flatten()
    assert all(float(a).hex().startswith("0x1.0000000000000p") for a in alpha) and len(alpha.unique()) > 2
    assert torch.equal(alpha, power_of_two_scale(rows, torch.ones_like(rows, dtype=torch.bool)).flatten().float())


@pytest.mark.parametrize("name", list(SCALES))
def test_scale_needs_no_values_on_the_host(name: str) -> None:
    weight = torch.empty(3, 4, device="meta")
    assert SCALES[name](Layer(weight), None).is_meta
    assert SCALES[name](Layer(weight), torch.empty(3, 4, device="meta", dtype=torch.bool)).is_meta


@pytest.mark.parametrize("way", ["another", "in place", "by NumPy"])
def test_a_mask_that_was_changed_after_its_rule_is_counted_as_it_is(way: str) -> None:
    def changed(layer: Layer) -> Tensor:
        mask = MASKS["edge-popup"](layer)
        if way == "another":
            return mask & (layer.weight > 0)
        if way == "in place":
            return mask.logical_and_(layer.weight > 0)
        mask.numpy()[:4] = False
        return mask

    layer = Layer(torch.randn(8, 50), torch.randn(8, 50), 0.5)
    mask = changed(layer)
    kept = int(mask.sum())
    assert 0 < kept < 200
    assert float(scale_of(SCALES["kaiming"], layer, mask)) == pytest.approx((2 * 8 / kept) ** 0.5, rel=1e-6)

from __future__ import annotations

import pytest
import torch

from mpt_bihalf import BINARIZERS, METHODS
from mpt_bihalf.layer import Layer
from tests.reference import decide

FIRST_METHOD_WITH = {
    "sign": "mpt-sign",
    "standardised-sign": "irnet",
    "centred-sign": "abc",
    "transport": "mpt-bihalf",
    "fixed": "mpt-balanced",
    "extremes": "magnitude-bihalf",
}


def test_sign_of_zero_is_plus_one(device: torch.device) -> None:
    weight = torch.tensor([[-1.0, -0.0, 0.0, 1.0]], device=device)
    assert BINARIZERS["sign"](Layer(weight), None).tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("p_pos", [0, 0.35, 0.5, 1])
@pytest.mark.parametrize("prune_rate", [0, 0.3, 0.9])
@pytest.mark.parametrize("name", list(BINARIZERS))
def test_each_binarizer_gives_every_weight_the_sign_of_its_method(
    name: str, prune_rate: float, p_pos: float, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 3, 5, generator=generator).mul(3).round().to(device)
    scores = torch.randn(4, 3, 5, generator=generator).to(device)
    method = FIRST_METHOD_WITH[name]
    mask, positive = decide(method, [weight], [scores], prune_rate, p_pos)[0]
    found = BINARIZERS[name](Layer(weight, scores, prune_rate, p_pos), mask)
    assert found.dtype == torch.bool and torch.equal(found, positive)
    assert METHODS[method].binarizer is BINARIZERS[name]


def test_fixed_signs_do_not_heed_the_mask_and_transport_does() -> None:
    layer = Layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    mask = torch.tensor([[True, True, False, False]])
    assert BINARIZERS["fixed"](layer, mask).tolist() == [[False, False, True, True]]
    assert BINARIZERS["transport"](layer, mask).tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("name", list(BINARIZERS))
def test_without_a_mask_all_weights_are_kept(name: str) -> None:
    weight = torch.tensor([[3.0, -2.0, -1.0, 1.0, 2.0]])
    expected = [[True, False, False, True, True]]
    assert BINARIZERS[name](Layer(weight), None).tolist() == expected

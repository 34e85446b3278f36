from __future__ import annotations

from unittest.mock import patch

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpt_bihalf import binarize, transport
from mpt_bihalf.layer import Layer
from mpt_bihalf.transport import transported
from tests.reference import half_up, one_line_error, positives, rows_of, signs, tensor_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TIED = [-float("inf"), -1.5, -0.0, 0.0, 1e-4, 1.5, float("inf")]
PRIORS = [0, 0.05, 0.3, 0.35, 0.5, 0.65, 0.9, 1, "1/3", 0.1234567890123456789]


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """1-D to 5-D weights of any float dtype and memory layout, full of ties or not."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    size = int(np.prod(shape))
    values = draw(st.sampled_from([st.sampled_from(TIED), st.floats(-10, 10, width=16), st.just(0.25)]))
    flat = draw(st.lists(values, min_size=size, max_size=size))
    weight = torch.tensor(flat, dtype=draw(st.sampled_from(DTYPES))).view(shape)
    layout = draw(st.sampled_from(["contiguous", "reversed", "strided", "channels_last"]))
    if layout == "reversed":
        turned = list(reversed(range(len(shape))))
        weight = weight.permute(turned).contiguous().permute(turned)
    elif layout == "strided":
        weight = torch.stack([weight, -weight], dim=-1)[..., 0]
    elif layout == "channels_last" and weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return weight


@given(weights(), st.sampled_from(PRIORS))
def test_unmasked_bits_are_those_of_a_stable_sort(weight: Tensor, p_pos: float) -> None:
    binary = binarize(weight, p_pos)
    assert binary.shape == weight.shape and binary.dtype == weight.dtype
    assert rows_of(binary) == [signs(row, [True] * len(row), p_pos) for row in rows_of(weight)]


@given(weights(), st.sampled_from(PRIORS), st.data())
def test_masked_bits_are_those_of_a_stable_sort_of_the_kept(weight: Tensor, p_pos: float, data: st.DataObject) -> None:
    kept = [
        data.draw(st.one_of(st.just([False] * len(row)), st.lists(st.booleans(), min_size=len(row), max_size=len(row))))
        for row in rows_of(weight)
    ]
    mask = tensor_of(kept, weight).to(data.draw(st.sampled_from([torch.bool, torch.int64, weight.dtype])))
    binary = binarize(weight, p_pos, mask)
    assert binary.shape == weight.shape and binary.dtype == weight.dtype
    assert rows_of(binary) == [signs(row, keep, p_pos) for row, keep in zip(rows_of(weight), kept, strict=True)]


@given(weights(), st.sampled_from(PRIORS), st.data())
def test_pruned_weights_have_the_sign_of_their_side_of_the_cut_off(
    weight: Tensor, p_pos: float, data: st.DataObject
) -> None:
    kept = [data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in rows_of(weight)]
    expected = [positives(row, keep, p_pos) for row, keep in zip(rows_of(weight), kept, strict=True)]
    for on_host in (True, False):  # an accelerator selects in another way
        with patch.object(transport, "host_reads_free", lambda rows, on_host=on_host: on_host):
            would_be = transported(Layer(weight, p_pos=p_pos), tensor_of(kept, weight))
        assert rows_of(would_be) == expected


def test_between_the_highest_kept_minus_and_the_lowest_kept_plus_a_pruned_weight_counts_as_minus() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    mask = torch.tensor([[False, True, False, False, True, False]])
    assert transported(Layer(weight), mask).tolist() == [[False, False, False, False, True, True]]


@pytest.mark.parametrize(("p_pos", "size", "n_pos"), [(0.35, 10, 4), (0.3, 5, 2), (0.5, 9, 5), (0, 6, 0), (1, 6, 6)])
def test_equal_weights_have_the_exact_ratio_with_plus_at_the_higher_indices(
    p_pos: float, size: int, n_pos: int, device: torch.device
) -> None:
    binary = binarize(torch.full((3, size), 0.7, device=device), p_pos)
    assert binary.device.type == device.type
    assert binary.tolist() == [[-1.0] * (size - n_pos) + [1.0] * n_pos] * 3


def test_negative_and_positive_zero_are_equal(device: torch.device) -> None:
    zeros = torch.tensor([[0.0, -0.0, 0.0, -0.0]], device=device)
    assert binarize(zeros).tolist() == [[-1, -1, 1, 1]]
    assert binarize(zeros, mask=torch.ones_like(zeros)).tolist() == [[-1, -1, 1, 1]]


def test_masked_ratio_is_exact_on_large_filters(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 4_608, generator=generator).mul(50).round()  # many ties
    mask = torch.rand(16, 4_608, generator=generator) < torch.linspace(0, 1, 16).unsqueeze(1)
    binary = binarize(weight.to(device), 0.35, mask.to(device)).cpu()
    assert torch.equal(binary != 0, mask)
    assert (binary > 0).sum(1).tolist() == [half_up(0.35, n) for n in mask.sum(1).tolist()]
    assert all(row[b > 0].min() >= row[b < 0].max() for row, b in zip(weight[2:], binary[2:], strict=True))


@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("p_pos", [0.1, 0.35, 0.5, 0.8])
@pytest.mark.parametrize("prune_rate", [0.0, 0.6])
def test_an_independent_solver_finds_no_cheaper_transport_plan(spread: float, p_pos: float, prune_rate: float) -> None:
    generator = torch.Generator().manual_seed(7)
    for size in (3, 10, 27):
        weight = torch.randn(1, size, generator=generator, dtype=torch.float64) * spread
        mask = torch.rand(1, size, generator=generator) >= prune_rate
        mask[0, 0] = True
        kept, bits = weight[mask].numpy(), binarize(weight, p_pos, mask)[mask].numpy()
        share = half_up(p_pos, len(kept)) / len(kept)
        cost = np.abs(kept[:, None] - np.array([1.0, -1.0]))
        plan = ot.emd(np.full(len(kept), 1 / len(kept)), np.array([share, 1 - share]), cost)
        assert (np.abs(kept - bits)).mean() == pytest.approx((plan * cost).sum(), abs=1e-12)
        if np.abs(kept).max() < 1:  # the plan is then the only one
            assert np.array_equal(np.where(plan[:, 0] > plan[:, 1], 1, -1), bits)


def test_result_carries_no_gradient() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    for mask in (None, torch.ones(3, 4)):
        assert not binarize(weight, mask=mask).requires_grad


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
def test_empty_weights_stay_empty(shape: tuple[int, ...]) -> None:
    assert binarize(torch.empty(shape)).shape == shape
    assert binarize(torch.empty(shape), mask=torch.ones(shape)).shape == shape


def test_needs_no_values_on_the_host() -> None:
    weight = torch.empty(4, 3, 2, device="meta")
    assert binarize(weight).is_meta and binarize(weight, 0.3, torch.empty(4, 3, 2, device="meta")).is_meta


@pytest.mark.parametrize(
    ("weight", "p_pos", "mask", "says"),
    [
        (torch.tensor([[1.0, float("nan")]]), 0.5, None, "NaN.*1 of 2"),
        (torch.tensor([[1.0, float("nan")]]), 0.5, torch.tensor([[1, 0]]), "NaN"),
        (torch.ones(2, 3), 0.5, torch.ones(3, 2), r"\(2, 3\), not \(3, 2\)"),
        (torch.ones(2, 3), 0.5, torch.ones(3), "shape"),
        (torch.ones(2, 3), 0.5, torch.full((2, 3), 0.5), "only 0 .* and 1"),
        (torch.ones(2, 3), 0.5, torch.full((2, 3), -1), "only 0 .* and 1"),
        (torch.ones(2, 3), 0.5, torch.full((2, 3), float("nan")), "only 0 .* and 1"),
        (torch.ones(2, 3), 1.01, None, "p_pos.*1.01"),
        (torch.ones(2, 3), -0.01, None, "p_pos.*-0.01"),
        (torch.ones(2, 3), float("nan"), None, "p_pos"),
        (torch.ones(2, 3, dtype=torch.int64), 0.5, None, "float dtype, not torch.int64"),
        (torch.ones(2, 3, dtype=torch.bool), 0.5, None, "float dtype"),
        (torch.ones(2, 3, dtype=torch.complex64), 0.5, None, "float dtype"),
        (torch.tensor(1.0), 0.5, None, "scalar"),
    ],
)
def test_what_cannot_be_binarized_is_an_error_of_one_line(
    weight: Tensor, p_pos: float, mask: Tensor | None, says: str
) -> None:
    with one_line_error(says):
        binarize(weight, p_pos, mask)

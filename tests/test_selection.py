from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpt_bihalf import kernels
from mpt_bihalf.selection import largest
from tests.reference import rows_of, top

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TIED = [-float("inf"), -1.5, -0.0, 0.0, 1e-4, 1.5, float("inf")]


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    rows, size = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    values = draw(st.sampled_from([st.sampled_from(TIED), st.floats(-10, 10, width=16)]))
    flat = draw(st.lists(values, min_size=rows * size, max_size=rows * size))
    matrix = torch.tensor(flat, dtype=draw(st.sampled_from(DTYPES))).view(rows, size)
    return matrix.T.contiguous().T if draw(st.booleans()) else matrix


FORMS = ["compiled", "numpy", "torch"]


def take(form: str, patch: pytest.MonkeyPatch) -> None:
    """One of the ways of finding an order statistic: the CPU's, that without a compiler, that of other devices."""
    if form == "numpy":
        patch.setattr(kernels, "compiled", lambda: None)
    elif form == "torch":
        patch.setattr(kernels, "suit", lambda *tensors: False)


@pytest.fixture(params=FORMS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    take(request.param, monkeypatch)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_largest_is_the_top_of_a_stable_ascending_sort(form: str, data: st.DataObject) -> None:
    values = data.draw(matrices())
    count = data.draw(st.integers(0, values.shape[1]))
    with pytest.MonkeyPatch.context() as patch:
        take(form, patch)
        mask = largest(values, count)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [top(row, count) for row in rows_of(values)]


def test_of_equal_values_those_of_higher_index_are_chosen(path: None, device: torch.device) -> None:
    assert largest(torch.zeros(2, 5, device=device), 2).tolist() == [[False, False, False, True, True]] * 2
    assert largest(torch.tensor([[0.0, -0.0, 0.0]], device=device), 1).tolist() == [[False, False, True]]
    assert largest(torch.tensor([[-0.0, 0.0, -0.0]], device=device), 1).tolist() == [[False, False, True]]


@pytest.mark.parametrize("count", [0, 3, 7])
def test_largest_needs_no_values_on_the_host(count: int) -> None:
    mask = largest(torch.empty(4, 7, device="meta"), count)
    assert mask.shape == (4, 7) and mask.dtype == torch.bool and mask.is_meta


def test_what_was_given_is_left_as_it_was(path: None) -> None:
    values = torch.rand(3, 50)
    before = values.clone()
    largest(values, 20)
    assert torch.equal(values, before)

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from mpt_bihalf import kernels
from mpt_bihalf.contents import contents

KINDS: dict[str, Callable[[], Tensor]] = {
    "float32": lambda: torch.randn(40, 50),
    "float64": lambda: torch.randn(40, 50, dtype=torch.float64),
    "bfloat16, half a word left": lambda: torch.randn(5, 201).bfloat16(),
    "channels last": lambda: torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last),
    "with gaps": lambda: torch.randn(40, 50)[:, ::2],
    "blocks and a rest": lambda: torch.randn(3, 1025),
}


def exchange(tensor: Tensor) -> None:
    first, last = tensor.data[0].clone(), tensor.data[-1].clone()
    tensor.data[0], tensor.data[-1] = last, first


def overwrite_by_numpy(tensor: Tensor) -> None:
    bits = tensor.data.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor.data
    bits.numpy()[-1, -1] = 3


WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda t: t.add_(1),
    "through data": lambda t: t.data.copy_(torch.randn(t.shape)),
    "one element by NumPy": overwrite_by_numpy,
    "two signs": lambda t: [t.data[0, 0].neg_(), t.data[-1, -1].neg_()],  # a sum of words alone would miss them
    "two filters exchanged": exchange,
}


@pytest.fixture(params=["compiled", "numpy"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("write", list(WRITES))
@pytest.mark.parametrize("kind", list(KINDS))
def test_on_the_host_every_write_is_seen_and_nothing_else(kind: str, write: str, form: str) -> None:
    tensor = KINDS[kind]()
    before, kept = contents(tensor), tensor.clone()
    assert contents(tensor) == before is not None
    WRITES[write](tensor)
    assert contents(tensor) != before
    tensor.data.copy_(kept)
    assert contents(tensor) == before


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_compiled_loop_and_numpy_give_the_same_number(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = KINDS[kind]()
    before = contents(tensor)
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    assert contents(tensor) == before


def test_the_same_memory_read_in_another_order_is_told_apart(form: str) -> None:
    tensor = torch.randn(6, 6)
    before = contents(tensor)
    tensor.data = tensor.data.t()
    assert contents(tensor) != before


def test_many_random_writes_are_told_apart() -> None:
    tensor = torch.randn(100, 300)
    seen = {contents(tensor)}
    for _ in range(2000):
        places = torch.randint(0, tensor.numel(), (int(torch.randint(1, 9, ())),))
        tensor.data.view(-1)[places] *= -1
        seen.add(contents(tensor))
    assert len(seen) > 1990  # now and then the same values come back


def test_where_the_host_cannot_look_it_goes_by_what_torch_notes() -> None:
    tensor = torch.empty(3, 4, device="meta")
    before = contents(tensor)
    assert before is not None
    tensor.add_(1)
    assert contents(tensor) != before


def test_of_a_tensor_without_memory_of_its_own_nothing_is_told() -> None:
    told: list[object] = []
    vmap(lambda row: told.append(contents(row)) or row)(torch.randn(2, 3))
    assert told == [None]

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mpt_bihalf.data import DataError, Dataset
from mpt_bihalf.distributed import Team
from mpt_bihalf.training import Run, loop, run_data, train


class Two(Team):
    """Two processes that have these data."""

    def __init__(self, first: Dataset, second: Dataset) -> None:
        self.digests = torch.tensor([[*bytes.fromhex(data.digest.sha256)] for data in (first, second)])

    def gather(self, values: Tensor) -> Tensor:
        both = self.digests.to(values.dtype)
        assert any(torch.equal(values, one) for one in both)
        return both


def test_processes_with_different_data_do_not_train_together(small: Dataset, other: Dataset) -> None:
    run_data.check_alike(Two(small, small), Run(), small)
    run_data.check_alike(Team(), Run(), small)
    for mine in (small, other):
        with pytest.raises(DataError, match=r"^digits holds other data for process 1 than for the first$"):
            run_data.check_alike(Two(small, other), Run(), mine)


@pytest.mark.parametrize("part", ["first", "second"])
def test_all_processes_of_a_run_end_by_the_same_error_before_anything_is_written(
    part: str,
    tmp_path: Path,
    small: Dataset,
    other: Dataset,
    make_run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team, run = Two(small, other), make_run(data_digest=small.digest.sha256)

    @contextmanager
    def together(*_: Any, **__: Any) -> Iterator[Team]:
        yield team

    monkeypatch.setattr(loop, "together", together)
    monkeypatch.setattr(loop, "kept_data", lambda run: other)
    begin = {
        "first": lambda: train(run, tmp_path, small),
        "second": lambda: loop.take_part(run, tmp_path, team),
    }
    with pytest.raises(DataError, match="other data for process 1"):
        begin[part]()
    assert list(tmp_path.iterdir()) == []


def test_kept_data_are_read_anew_where_a_run_asks_for_others(
    small: Dataset, other: Dataset, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [small]
    monkeypatch.setattr(run_data, "load_dataset", lambda *_: now[-1])
    run_data._kept_data.cache_clear()
    try:
        run = make_run(data_digest=small.digest.sha256)
        assert run_data.kept_data(run) is small
        now.append(other)
        assert run_data.kept_data(run) is small
        assert run_data.kept_data(replace(run, data_digest=other.digest.sha256)) is other
    finally:
        run_data._kept_data.cache_clear()

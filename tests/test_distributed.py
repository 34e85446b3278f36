from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mpt_bihalf import devices
from mpt_bihalf.distributed import ALONE, Launch, is_to_tell, launched, lead, together, typed_command

Started = Callable[..., None]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """As if torchrun had started this process so."""

    def set_environment(rank: int = 0, processes: int = 4, local: int = 2) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        for name, value in zip(names, (rank, processes, rank % local, local), strict=True):
            monkeypatch.setenv(name, str(value))

    return set_environment


def test_a_process_knows_how_torchrun_started_it(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    started(rank=3)
    assert launched() == Launch(rank=3, processes=4, local_rank=1, local_processes=2)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # what else may set these names is not meant for us
    assert launched() == Launch(0, 1, 0, 1)


def test_alone_a_command_is_just_done_and_there_is_nobody_to_ask() -> None:
    done = []
    lead(lambda: done.append(1))
    assert done == [1]
    assert is_to_tell()
    with together(print, device=torch.device("cpu")) as team:
        assert team is ALONE
    model, values = nn.Linear(2, 2), torch.ones(3)
    assert team.share == (0, 1)
    assert team.parallel(model, sync_bn=True) is model
    assert team.sum(values) is team.gather(values) is values
    assert [team.agree(signum) for signum in (None, 15)] == [None, 15]
    assert not torch.distributed.is_initialized()


def test_an_error_alone_is_the_commands_own() -> None:
    def fail() -> None:
        with together(print, device=torch.device("cpu")):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        lead(fail)


def test_another_process_than_the_first_that_does_not_follow_is_told_how_to(started: Started) -> None:
    started(rank=1)
    with pytest.raises(RuntimeError, match="run_command"), together(print, device=torch.device("cpu")):
        pass


@pytest.mark.parametrize(
    ("processes", "local", "typed", "expected"),
    [
        (1, 1, "-m mpt_bihalf", "-m mpt_bihalf"),
        (2, 2, "-u a.py -u", "-m torch.distributed.run --standalone --nproc-per-node 2 a.py -u"),
        (2, 2, "-u -m m", "-m torch.distributed.run --standalone --nproc-per-node 2 -m m"),
        (4, 2, "-u a.py", "-m torch.distributed.run --nnodes 2 --nproc-per-node 2 a.py"),
    ],
)
def test_the_command_that_goes_on_is_torchruns(
    processes: int,
    local: int,
    typed: str,
    expected: str,
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", *typed.split()])
    started(processes=processes, local=local)
    assert typed_command() == ["python", *expected.split()]


@pytest.mark.parametrize(
    ("device", "there", "told"),
    [
        ("cpu", 0, None),
        ("cuda", 2, None),
        ("cuda", 1, r"2 processes are more than the 1 accelerators.*--nproc-per-node 1"),
        ("cuda:1", 2, "say cuda, not cuda:1"),
    ],
)
def test_each_process_has_a_device_of_its_own(
    device: str, there: int, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "accelerators", lambda: there)
    if told is None:
        devices.check_shared(device, 2)
    else:
        with pytest.raises(ValueError, match=told):
            devices.check_shared(device, 2)

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpt_bihalf.sweep import PruneSweep
from mpt_bihalf.training import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPT_BIHALF_CACHE", str(tmp_path_factory.mktemp("cache") / "none-yet"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def runs() -> Callable[..., list[Run]]:
    """The runs of a pruning sweep of few steps."""

    def do(**options: Any) -> list[Run]:
        settings = {"rates": "0.5", "trials": 2, "epochs": 1, "device": "cpu", "threads": 1, "grid": ["batch_size=700"]}
        return PruneSweep(**{**settings, **options}).runs()

    return do


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python process with this code; all of them, and what they started, are killed in the end."""
    started = []

    def do(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield do
    for process in started:
        kill_all(process.pid)
        process.communicate()


def kill_all(pid: int) -> None:
    """SIGKILL for a process and all that it started."""
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What the condition gives as soon as it gives something true."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)
    return found

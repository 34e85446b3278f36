"""Processes that tests start: forked from the tests' own, so that none has to import torch again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

# A program that sends itself a signal in a training step: see there.
AT_STEP = str(Path(__file__).with_name("at_step.py"))
# Of an accelerator a forked process can make no use.
PROCESSES: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")


class Program:
    """`python SCRIPT`, or `python -m MODULE`, with arguments, in a process of its own.

    place: a folder for what it prints. environment: what it has beside this process's.
    """

    def __init__(self, place: Path, script: str, *arguments: str, **environment: str) -> None:
        number = len(list(place.glob("out-*")))
        self.out, self._err = place / f"out-{number}", place / f"err-{number}"
        self.out.touch()
        self.process = PROCESSES.Process(target=_run, args=(script, arguments, environment, self.out, self._err))
        self.process.start()

    def ended(self, seconds: float = 300) -> tuple[int, str, str]:
        """Its exit status, negative for a signal, and what it printed, once it has ended, which must come."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            kill_all(self.process.pid)
            raise AssertionError("waited in vain")
        return self.process.exitcode, self.out.read_text(), self._err.read_text()


def _run(script: str, arguments: tuple[str, ...], environment: dict[str, str], out: Path, err: Path) -> None:
    for number, (file, name) in enumerate(((out, "stdout"), (err, "stderr")), 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    sys.orig_argv = [sys.executable, *(["-m"] if not script.endswith(".py") else []), *sys.argv]
    run: Callable[..., object] = runpy.run_path if script.endswith(".py") else runpy.run_module
    run(script, run_name="__main__")


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


def is_over(process: psutil.Process) -> bool:
    """Whether it has ended, be it that nobody has asked yet how."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True

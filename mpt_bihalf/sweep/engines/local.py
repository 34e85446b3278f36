"""Runs on this machine: worker processes that stay up between runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from ...devices import accelerators
from ...plugins import loaded_plugins
from ...training import Run
from ...training.callbacks import received
from ...training.config import usable_cores
from ..order import Order
from ..work import Outcome, failed
from .engine import Engine, EngineOptions, Event

# A run whose process was killed is taken up again so often.
ATTEMPTS = 3
# Seconds that a worker has to end its step and write its checkpoint when the sweep is interrupted, or killed.
PATIENCE = 60
START = Path(__file__).with_name("start_worker.py")
PACKAGE_PARENT = Path(__file__).parents[3]
# Workers by default, at most: each holds the data and torch in memory.
MOST = 8


class LocalEngine(Engine):
    """`jobs` worker processes; on accelerators spread evenly over these."""

    def __init__(self, out: Path, runs: list[Run], options: EngineOptions) -> None:
        on_cpu = all(run.device == "cpu" for run in runs)
        self._devices = 0 if on_cpu else accelerators()
        if on_cpu:
            room = min(usable_cores() // max(run.threads for run in runs), MOST)
        elif any(":" in run.device for run in runs):  # one of several was asked for by name
            self._devices, room = 0, options.runs_per_device
        else:
            room = self._devices * options.runs_per_device
        self.jobs = options.jobs or max(1, room)
        self._out = out

    def do(self, runs: list[Run]) -> Generator[Event]:
        order, events = Order(runs, self._out), SimpleQueue[Event | BaseException]()
        workers = [_Worker(self._out, order, events, self.accelerator(n)) for n in range(min(self.jobs, len(runs)))]
        try:
            for worker in workers:
                worker.start()
            missing = len(runs)
            while missing:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                missing -= isinstance(event, Outcome)
                yield event
        finally:
            order.close()
            _stop(workers)

    def accelerator(self, worker: int) -> str:
        """The number of this worker's accelerator; empty where there are none."""
        return str(worker % self._devices) if self._devices else ""


class _Worker(threading.Thread):
    """A thread that sees to one worker process: hands it runs, passes on what it says, starts it again if it dies."""

    def __init__(self, out: Path, order: Order, events: SimpleQueue[Event | BaseException], accelerator: str) -> None:
        super().__init__(daemon=True)
        self._out, self._order, self._events, self._accelerator = out, order, events, accelerator
        self._starting = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self) -> None:
        try:
            while (run := self._order.take()) is not None:
                for outcome in self._order.end(self._do(run)):
                    self._events.put(outcome)
        except _Stop:
            pass
        except BaseException as fault:  # nobody else would hear of it
            self._events.put(fault)

    def stop(self) -> None:
        with self._starting:
            self._stopped = True
            if self._process:
                self._process.terminate()

    def wait(self, seconds: float) -> None:
        if self._process:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        if self._process:
            self._process.kill()

    def _do(self, run: Run) -> Outcome:
        for _ in range(ATTEMPTS):
            outcome = self._attempt(run)
            if outcome is not None:
                return outcome
        assert self._process
        ended = _told(self._process.wait())
        return failed(run, self._out, f"its process {ended}, {ATTEMPTS} times")

    def _attempt(self, run: Run) -> Outcome | None:
        """What became of the run; None where its process died over it."""
        process = self._running()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(asdict(run)) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                answer = json.loads(line)
                if isinstance(answer, dict):
                    if answer["error"]:
                        self._end()  # what it may have left in memory is not the next run's
                    return Outcome(run, **answer)
                self._events.put((run, *received(answer)))
        except (BrokenPipeError, ValueError):  # it died before it had read, or while it wrote
            pass
        self._end()
        return None

    def _running(self) -> subprocess.Popen[str]:
        with self._starting:
            if self._stopped:
                raise _Stop
            if self._process is None or self._process.poll() is not None:
                plugins = json.dumps(loaded_plugins())
                self._process = subprocess.Popen(
                    [sys.executable, START, str(PATIENCE), self._out, self._accelerator, plugins, *search_path()],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    # An interrupt at the terminal comes to this process alone, which then ends the workers in order.
                    start_new_session=True,
                )
            return self._process

    def _end(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()


def search_path() -> list[str]:
    """The folders that a worker looks for modules in: those of this process but the current one, where anything may lie
    that would be taken for a module of Python's. If the package lies there, it comes last."""
    return [path for path in sys.path if not is_here(path)] + [str(PACKAGE_PARENT)] * is_here(PACKAGE_PARENT)


def is_here(path: str | Path) -> bool:
    """Whether this is the current folder, however it is called."""
    with suppress(OSError):
        return os.path.samestat(os.stat(path or "."), os.stat("."))
    return False


class _Stop(Exception):
    """The engine wants no more of this worker."""


def _stop(workers: list[_Worker]) -> None:
    """End the workers' runs after the step that each is at; a second interrupt ends them at once."""
    for worker in workers:
        worker.stop()
    until = time.monotonic() + PATIENCE
    try:
        for worker in workers:
            worker.wait(max(0.0, until - time.monotonic()))
    except BaseException:
        for worker in workers:
            worker.kill()
        raise


def _told(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    return f"was killed ({name}" + (", perhaps for want of memory)" if name == "SIGKILL" else ")")

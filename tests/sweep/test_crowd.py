"""Many sweeps and reports at once on one folder, killed at random, and then one that is left alone.

By hand: `CROWD_SECONDS=600 python -m pytest -m slow -s tests/sweep/test_crowd.py`.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.processes import kill_all, wait_for
from tests.sweep.conftest import ROOT
from tests.sweep.test_faults import Sweep, assert_same

SECONDS = float(os.environ.get("CROWD_SECONDS", "600"))
SWEEPS, REPORTS = 10, 3
TRIALS = max(4, int(SECONDS / 4))
GRID = ("--models", "conv2", "--width", "0.1", "--epochs", "1", "--grid", "batch_size=32")
METHODS = ("sign", "mpt-sign")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Process:
    """A command of the crowd; what it tells goes to a file."""

    def __init__(self, command: list[str], told: Path) -> None:
        self.told, self.asked = told, set[int]()
        with told.open("w") as file:
            self.process = subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=file, stderr=file, text=True
            )

    @property
    def at_work(self) -> bool:
        """Whether Python has started, and is not about to end."""
        return handles(self.process.pid, signal.SIGTERM)

    def kill(self, signum: int) -> None:
        if signum == signal.SIGKILL or self.at_work:
            self.process.send_signal(signum)
            self.asked.add(signum)

    def check(self) -> int:
        """How it ended: well, as it was asked to, or with one line that says which runs could not be done."""
        status, text = self.process.returncode, self.told.read_text()
        assert "Traceback" not in text, text
        assert "Exception ignored" not in text, text
        lines = [line for line in text.splitlines() if line.startswith(("error: ", "interrupted: "))]
        allowed = {0} | {-signum for signum in self.asked} | {128 + signum for signum in self.asked}
        if status == 1:
            assert len(lines) == 1 and "runs failed, the first" in lines[0] and "3 times" in lines[0], text
        else:
            assert status in allowed, f"{status}: {text}"
            assert len(lines) == (status > 1) or status < 0, text
        return status


def handles(pid: int, signum: int) -> bool:
    """Whether a process has a handler of its own for this signal."""
    with suppress(OSError):
        found = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
        return bool(found and int(found[1], 16) >> (signum - 1) & 1)
    return False


class Crowd:
    def __init__(self, out: Path, told: Path) -> None:
        self.out, self._told, self._made = out, told, 0
        self.sweeps: list[Process | None] = [None] * SWEEPS
        self.reports: list[Process | None] = [None] * REPORTS
        self.ends, self.kills, self._results = Counter[str](), Counter[str](), dict[Path, tuple[int, int]]()

    def keep_going(self) -> None:
        """Check those that have ended, and start others in their place."""
        self.look_at_results()
        for kind, processes in (("sweep", self.sweeps), ("report", self.reports)):
            for place, one in enumerate(processes):
                if one is not None:
                    if one.process.poll() is None:
                        continue
                    self.ends[f"{kind} {one.check()}"] += 1
                    one.told.unlink()
                    processes[place] = None
                if kind == "sweep" or self._results:
                    self._made += 1
                    processes[place] = Process(self._command(kind, place), self._told / f"{kind}-{self._made}.txt")

    def _command(self, kind: str, place: int) -> list[str]:
        if kind == "report":
            figure = ("test_top1", "test_loss", "train_loss")[place % 3]
            return [sys.executable, "-m", "mpt_bihalf", "report", str(self.out), "--figure", figure]
        # Grids that overlap, and some that are the same.
        options = (
            "--methods",
            *METHODS[place % 2 :],
            "--trials",
            str(TRIALS - place // 4),
            "--jobs",
            str(1 + place % 2),
        )
        return Sweep(self.out, *options, *GRID).command

    def kill_one(self) -> bool:
        """Send a signal to a sweep with workers, one of these, or a report; seldom SIGKILL to any, as it starts.

        False where none has got so far: killed always before, a crowd would do nothing.
        """
        there = [one for one in [*self.sweeps, *self.reports] if one is not None and one.process.poll() is None]
        workers = {one: self._workers(one) for one in there}
        at_work = [one for one in there if one.at_work and (workers[one] or one in self.reports)]
        early = random.random() < 0.1
        if not (there if early else at_work):
            return False
        target, signum = random.choice(there if early else at_work), random.choice(SIGNALS)
        if early:
            signum = signal.SIGKILL
        if workers[target] and random.random() < 0.5:
            with suppress(psutil.NoSuchProcess):
                random.choice(workers[target]).send_signal(signum)
                self.kills[f"worker {signum.name}"] += 1
        else:
            target.kill(signum)
            self.kills[signum.name] += 1
        return True

    @staticmethod
    def _workers(one: Process) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(one.process.pid).children()
        return []

    def look_at_results(self) -> None:
        """No result is ever made again."""
        for result in self.out.glob("runs/*/result.json"):
            status = result.stat()
            now = status.st_ino, status.st_mtime_ns
            assert self._results.setdefault(result, now) == now, f"{result} was made twice"

    def end(self) -> None:
        """Ask all to end."""
        for one in [*self.sweeps, *self.reports]:
            if one is not None:
                wait_for(lambda one=one: one.process.poll() is not None or one.at_work)
                one.kill(signal.SIGTERM)
                one.process.wait(120)
                self.ends[f"at the end {one.check()}"] += 1

    def kill_all(self) -> None:
        for one in [*self.sweeps, *self.reports]:
            if one is not None:
                kill_all(one.process.pid)
                one.process.wait()


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    (tmp_path / "told").mkdir()
    made = Crowd(tmp_path / "out", tmp_path / "told")
    yield made
    made.kill_all()


@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS + 1200)
def test_a_crowd_killed_at_random_does_each_run_once_and_ends_as_one_left_alone(tmp_path: Path, crowd: Crowd) -> None:
    seed = random.randrange(2**32)
    random.seed(seed)
    until, next_kill = time.monotonic() + SECONDS, 0.0
    while (now := time.monotonic()) < until:
        crowd.keep_going()
        if now > next_kill and crowd.kill_one():
            next_kill = now + random.uniform(0.5, 8.0)
        time.sleep(0.05)
    crowd.end()
    done = len(list(crowd.out.glob("runs/*/result.json")))
    assert any(name.startswith("worker") for name in crowd.kills) and any("report" in name for name in crowd.ends)
    print(f"\nseed {seed}; {done} of {2 * TRIALS} runs done; ends {dict(crowd.ends)}; kills {dict(crowd.kills)}")

    options = ("--methods", *METHODS, "--trials", str(TRIALS), *GRID)
    quiet, alone = Sweep(crowd.out, *options), Sweep(tmp_path / "alone", *options)
    told = quiet.complete()
    assert "error" not in told and "interrupted" not in told
    crowd.look_at_results()
    report = [sys.executable, "-m", "mpt_bihalf", "report", str(crowd.out), "--figure"]
    for figure in ("test_top1", "test_loss", "train_loss"):
        subprocess.run([*report, figure], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert [str(path) for path in crowd.out.rglob(".*")] == []
    assert list(crowd.out.glob("runs/*/*-*/*")) == []  # nothing was put aside
    alone.complete()
    assert_same(quiet, alone)

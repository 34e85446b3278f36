from __future__ import annotations

import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf.commandline import run_command

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "prune_sweep.py"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, for this process and those it starts."""
    folder = tmp_path_factory.mktemp("cache") / "none-yet"
    monkeypatch.setenv("MPT_BIHALF_CACHE", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


@cache
def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "experiments" / f"{name}.py"))


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command of the experiment of this name in this process; its exit status."""

    def do(name: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        try:
            run_command(script(name)["main"])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return do


@pytest.fixture
def sweep(experiment: Callable[..., int]) -> Callable[..., int]:
    """Run the pruning sweep in this process; its exit status."""
    return partial(experiment, "prune_sweep")


@pytest.fixture
def command() -> list[str]:
    return [sys.executable, str(SCRIPT)]


@pytest.fixture
def kill_in_epoch(tmp_path: Path) -> Callable[..., Path]:
    """Start a command and kill it once a run below `out` that was not killed before is past its first epoch."""

    def do(command: list[str], out: Path, before: set[Path], delay: float) -> Path:
        with (tmp_path / "killed.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while True:
                assert process.poll() is None, (tmp_path / "killed.log").read_text()
                begun = {path.parent for path in out.rglob("checkpoint.pt")}
                found = [folder for folder in begun - before if not (folder / "result.json").exists()]
                if found:
                    break
                time.sleep(0.002)
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (found[0] / "result.json").exists(), "killed too late to be in the midst of the run"
        return found[0]

    return do

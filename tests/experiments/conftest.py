from __future__ import annotations

import csv
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

from mpt_bihalf.endings import run_command
from mpt_bihalf.training import Run

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "prune_sweep.py"
NO_ENGINE = ("activation_variance", "search_space")  # which train nothing


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
        here = [] if name in NO_ENGINE or "--engine" in arguments else ["--engine", "serial"]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, *here])
        try:
            run_command(script(name)["main"])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return do


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """The experiment that the test file is named after."""
    return request.path.stem.removeprefix("test_")


@pytest.fixture
def ran(name: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the file's experiment in a process of its own, to the end."""

    def do(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return do


@pytest.fixture
def refused(
    name: str, experiment: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The one line that is all that the file's experiment does when it is run so."""

    def do(*arguments: str) -> str:
        assert experiment(name, "--out", str(tmp_path / "out"), *arguments) == 2
        told = capsys.readouterr()
        assert told.err.startswith("error: ") and told.err.count("\n") == 1, told.err
        assert told.out == ""
        assert not (tmp_path / "out").exists()
        return told.err

    return do


@pytest.fixture
def runs_of(name: str) -> Callable[..., list[Run]]:
    """The runs of the file's experiment with these options."""
    options = script(name)[name.title().replace("_", "")]
    return lambda **given: options(device="cpu", threads=1, **given).runs()


@pytest.fixture
def rows_of() -> Callable[[Path], list[dict[str, str]]]:
    """The rows of a CSV file."""

    def read(file: Path) -> list[dict[str, str]]:
        with file.open(newline="") as lines:
            return list(csv.DictReader(lines))

    return read


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

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf.endings import run_command
from mpt_bihalf.experiments import Experiment, Results, TrainingExperiment
from mpt_bihalf.sweep import find_runs
from mpt_bihalf.training import Run
from tests.processes import Program

ROOT = Path(__file__).parents[2]
Record = dict[str, Any]
# A run of these is done in a second.
TINY = ["--engine", "serial", "--device", "cpu", "--threads", "1", "--epochs", "1"]


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own, for this process and those it starts."""
    folder = tmp_path_factory.mktemp("cache") / "none-yet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPT_BIHALF_CACHE", str(folder))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield folder


def find(name: str) -> type[Experiment]:
    """The experiment that a file of `mpt_bihalf/experiments` holds."""
    module = import_module(f"mpt_bihalf.experiments.{name}")
    (found,) = (
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Experiment) and vars(thing).get("name") == name
    )
    return found


@pytest.fixture
def experiment_of() -> Callable[[str], Any]:
    """The class of the experiment of this name."""
    return find


@pytest.fixture(scope="module")
def call() -> Callable[..., tuple[int, str]]:
    """Run the command of the experiment of this name so that it ends soon: its exit status, and what it printed."""
    return lambda name, *arguments: call_here(name, *TINY, *arguments)


def call_here(name: str, *arguments: str) -> tuple[int, str]:
    """The command of the experiment in this process: its exit status, and what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        try:
            run_command(find(name).main)
        except SystemExit as end:
            return int(end.code or 0), printed.getvalue()
    return 0, printed.getvalue()


@dataclass
class Done:
    """An experiment that was done once, for many tests to look at."""

    name: str
    out: Path
    options: list[str]
    printed: str = ""
    times: dict[Path, int] = field(default_factory=dict)

    def again(self, *further: str) -> str:
        """What the same command prints once more; that it trained nothing is checked."""
        status, printed = call_here(self.name, *self.options, *further)
        assert status == 0
        assert self.of_runs() == self.times
        return printed

    def of_runs(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (self.out / "runs").rglob("*")}

    def results(self) -> Results:
        return Results(self.out, find_runs(self.out))

    def table(self, name: str = "") -> pd.DataFrame:
        return pd.read_csv(self.out / f"{name or self.name}.csv", dtype={"layer": str})

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(self.out / "curves"))
        events.Reload()
        return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    def measured(self) -> str:
        (line,) = (line for line in self.printed.splitlines() if line.startswith("measured: "))
        return line


@pytest.fixture(scope="module")
def name(request: pytest.FixtureRequest) -> str:
    """The experiment that the test file is named after."""
    return request.path.stem.removeprefix("test_")


@pytest.fixture(scope="module")
def done(name: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The file's experiment, done once with its `OPTIONS`; that it leaves and tells what each must is checked."""
    out = tmp_path_factory.getbasetemp() / name  # where a file may have put something
    out.mkdir(exist_ok=True)
    tiny = TINY if issubclass(find(name), TrainingExperiment) else []
    done = Done(name, out, [*tiny, *request.module.OPTIONS, "--out", str(out)])
    status, done.printed = call_here(name, *done.options)
    assert status == 0
    for ending in (".csv", ".txt", ".md", ".tex", ".png", ".pdf"):
        assert (out / f"{name}{ending}").stat().st_size > 0
        assert f"{out / name}.png" in done.printed
    assert (out / f"{name}.txt").read_text() in done.printed
    lines = done.printed.splitlines()
    assert f"paper:    {find(name).claim}" == lines[lines.index(done.measured()) + 1]
    done.times = done.of_runs()
    return done


@pytest.fixture
def experiment() -> Callable[..., int]:
    """Run the command of the experiment of this name in this process, with no engine beside it; its exit status."""

    def do(name: str, *arguments: str) -> int:
        trains = issubclass(find(name), TrainingExperiment) and "--engine" not in arguments
        status, printed = call_here(name, *arguments, *(["--engine", "serial"] if trains else []))
        print(printed, end="")
        return status

    return do


@pytest.fixture
def sweep(experiment: Callable[..., int]) -> Callable[..., int]:
    """Run the pruning sweep in this process; its exit status."""
    return partial(experiment, "prune_sweep")


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
    options: Any = find(name)
    return lambda **given: options(device="cpu", threads=1, **given).runs()


@pytest.fixture
def measured(
    trials: Callable[..., list[Record]], request: pytest.FixtureRequest
) -> Callable[..., tuple[list[Record], pd.DataFrame]]:
    """Records and trace of methods: for each what the test file's `trace_of` takes for each of its trials."""

    def make(methods: dict[str, list[Any]]) -> tuple[list[Record], pd.DataFrame]:
        records = [record for method, runs in methods.items() for record in trials(method, 0.0, [90.0] * len(runs))]
        traces = [
            request.module.trace_of(method, seed, run)
            for method, runs in methods.items()
            for seed, run in enumerate(runs)
        ]
        return records, pd.concat(traces, ignore_index=True)

    return make


@pytest.fixture
def kill(name: str, tmp_path: Path) -> Callable[..., Path]:
    """Do the file's experiment in a process that is killed at a training step; the folder of the run that it was at."""

    def do(step: int, out: Path, *arguments: str) -> Path:
        at_step = [str(ROOT / "tests" / "at_step.py"), str(step), str(int(signal.SIGKILL))]
        module = f"mpt_bihalf.experiments.{name}"
        program = Program(tmp_path, *at_step, module, *arguments, "--engine", "serial", "--out", str(out))
        assert program.ended()[0] == -signal.SIGKILL
        begun = (path.parent for path in out.rglob("checkpoint.pt"))
        (folder,) = (folder for folder in begun if not (folder / "result.json").exists())
        return folder

    return do

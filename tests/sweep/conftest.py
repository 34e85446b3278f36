from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mpt_bihalf.experiments.prune_sweep import PruneSweep
from mpt_bihalf.sweep.claim import held, read_claim
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run
from tests.processes import PROCESSES, kill_all

ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture(autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPT_BIHALF_CACHE", str(tmp_path_factory.mktemp("cache") / "none-yet"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def runs() -> Callable[..., list[Run]]:
    """The runs of a pruning sweep of small networks and few steps."""

    def do(**options: Any) -> list[Run]:
        settings = {"rates": "0.5", "trials": 2, "epochs": 1, "device": "cpu", "threads": 1, "grid": ["batch_size=700"]}
        made = PruneSweep(**{**settings, **options}).runs()
        return [replace(run, width=0.1) if run.width == 1 else run for run in made]

    return do


@pytest.fixture
def begin() -> Iterator[Callable[..., BaseProcess]]:
    """Start a process that calls a function; all of them, and what they started, are killed in the end."""
    begun: list[BaseProcess] = []

    def do(function: Callable[..., object], *arguments: object) -> BaseProcess:
        begun.append(PROCESSES.Process(target=function, args=arguments))
        begun[-1].start()
        return begun[-1]

    yield do
    for process in begun:
        assert process.pid
        kill_all(process.pid)
        process.join()


def holder(folder: Path) -> dict[str, Any] | None:
    """What the claim of whoever does the run in this folder tells; None if nobody does it."""
    claim = read_claim(folder)
    return claim if claim is not None and held(folder) else None


class Folder:
    """A sweep's output folder, filled by hand with what runs leave."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def begun(self, run: Run, epochs: int = 0, **files: Any) -> Path:
        """A run that has done some epochs; files: content of JSON files, or text, by name without its ending."""
        folder = run_folder(self.out, run)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(asdict(run)))
        if epochs:
            rows = [f"{epoch},{1 / epoch},50.0,{60 + epoch}" for epoch in range(1, epochs + 1)]
            (folder / "metrics.csv").write_text("\n".join(["epoch,train_loss,train_top1,test_top1", *rows]) + "\n")
        for name, content in files.items():
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    def done(self, run: Run, top1: float = 80.0, **files: Any) -> Path:
        figures = dict.fromkeys(("train_loss", "train_top1", "train_top5", "test_loss", "test_top5"), 1.5)
        best = {"best_epoch": 2, "best_epoch_test_top1": top1 + 1}
        result = {"status": "finished", "epochs": run.epochs, **figures, "test_top1": top1, **best}
        return self.begun(run, run.epochs, result=result, **files)

    def diverged(self, run: Run) -> Path:
        return self.begun(run, result={"status": "diverged: NaN in layer '0' in epoch 2"})

    @contextlib.contextmanager
    def running(self, run: Run, epochs: int = 0, **claim: Any) -> Iterator[Path]:
        """A run that somebody does, who holds its lock."""
        folder = self.begun(run, epochs, claim={"host": "here", "pid": 7, "since": 1e9, **claim})
        with FileLock(folder / "claim.lock"):
            yield folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "out")


@pytest.fixture
def grid() -> list[Run]:
    """Two methods at two rates, two trials of each."""
    return [
        Run(method=method, prune_rate=rate, seed=seed, epochs=10, device="cpu", threads=1)
        for method in ("mpt-sign", "mpt-bihalf")
        for rate in (0.1, 0.5)
        for seed in (0, 1)
    ]


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Call it to go on as a user without rights, who may look at the test's folder."""
    if os.geteuid() != 0:
        yield lambda: None
        return
    place = tmp_path
    while place != place.parent:
        if not place.stat().st_mode & 0o001:
            place.chmod(place.stat().st_mode | 0o011)
        place = place.parent
    yield lambda: os.seteuid(NOBODY)
    os.seteuid(0)

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch

from mpt_bihalf.sweep import EngineOptions, read_records, run_all
from mpt_bihalf.sweep.claim import claimed
from mpt_bihalf.sweep.engines import local
from mpt_bihalf.sweep.engines.local import LocalEngine
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.sweep.work import Outcome, perform
from mpt_bihalf.training import Run
from tests.processes import is_over, wait_for
from tests.sweep.conftest import holder

Runs = Callable[..., list[Run]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[str]]]:
    """The worker processes that were started; none may be left in the end."""
    processes: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def note(*arguments: object, **options: object) -> subprocess.Popen[str]:
        processes.append(start(*arguments, **options))  # type: ignore[call-overload]
        return processes[-1]

    monkeypatch.setattr(local.subprocess, "Popen", note)
    yield processes
    assert [process.pid for process in processes if process.poll() is None] == []


def do(runs: list[Run], out: Path, jobs: int = 1) -> list[Outcome]:
    engine = LocalEngine(out, runs, EngineOptions(jobs=jobs))
    with closing(engine.do(runs)) as events:
        return [event for event in events if isinstance(event, Outcome)]


def long(run: Run) -> Run:
    """The run with minutes of work in small steps."""
    return replace(run, epochs=1000, batch_size=20)


def test_workers_stay_up_between_runs_whose_results_are_those_of_runs_in_this_process(
    tmp_path: Path, runs: Runs, started: list[subprocess.Popen[str]]
) -> None:
    wanted = runs(methods=["sign", "mpt-bihalf"])
    outcomes = do(wanted, tmp_path / "workers", jobs=2)
    assert len(started) == 2
    assert {outcome.run for outcome in outcomes} == set(wanted)
    for outcome in outcomes:
        assert outcome == perform(outcome.run, tmp_path / "here")
    assert read_records(tmp_path / "workers", wanted) == read_records(tmp_path / "here", wanted)


def test_a_run_whose_worker_is_killed_goes_on_and_ends_as_one_left_alone(
    tmp_path: Path, runs: Runs, started: list[subprocess.Popen[str]]
) -> None:
    (run, other) = (replace(run, epochs=4, batch_size=20) for run in runs(methods=["mpt-bihalf"]))
    folder = run_folder(tmp_path, run)

    def kill() -> None:
        while not (folder / "checkpoint.pt").exists():
            time.sleep(0.001)
        os.kill((holder(folder) or {})["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = do([run, other], tmp_path)
    killer.join()
    assert len(started) == 2
    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert len(list(folder.glob("events.*"))) == 2
    assert outcomes[0].result == perform(run, tmp_path / "alone").result
    weights = [
        torch.load(run_folder(out, run) / "checkpoint.pt", weights_only=True)["model"]
        for out in (tmp_path, tmp_path / "alone")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_run_whose_workers_are_all_killed_has_failed_and_the_others_go_on(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[str]]
) -> None:
    monkeypatch.setattr(local, "ATTEMPTS", 2)
    wanted = runs(methods=["sign"])
    wanted[0] = long(wanted[0])
    folder = run_folder(tmp_path, wanted[0])
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.01):
            found = holder(folder)
            if found is not None and found.get("pid", os.getpid()) != os.getpid():  # which notes the failure
                with suppress(ProcessLookupError):
                    os.kill(found["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    failed, done = do(wanted, tmp_path)
    ended.set()
    killer.join()
    assert failed.error == "its process was killed (SIGKILL, perhaps for want of memory), 2 times"
    assert "want of memory" in (folder / "failure.json").read_text()
    assert done.result and len(started) == 3


def test_closing_ends_the_runs_under_way_with_their_steps_kept(
    tmp_path: Path, runs: Runs, started: list[subprocess.Popen[str]]
) -> None:
    wanted = [long(run) for run in runs(methods=["sign"])]
    events = LocalEngine(tmp_path, wanted, EngineOptions(jobs=2)).do(wanted)
    under_way = set()
    while len(under_way) < 2:
        run, progress, *_ = next(events)
        under_way |= {run} if progress.step else set()
    events.close()
    for run in wanted:
        assert not (run_folder(tmp_path, run) / "result.json").exists()
        assert holder(run_folder(tmp_path, run)) is None
        assert (run_folder(tmp_path, run) / "checkpoint.pt").exists()
        assert not (run_folder(tmp_path, run) / "failure.json").exists()


def sweep(run: Run, out: Path, patience: float) -> None:
    local.PATIENCE = patience  # type: ignore[assignment]
    run_all([run], out)


def test_workers_end_with_a_sweep_that_is_killed(tmp_path: Path, runs: Runs, begin: Callable[..., BaseProcess]) -> None:
    (run,) = (long(run) for run in runs(methods=["sign"], trials=1))
    process, folder = begin(sweep, run, tmp_path, 600), run_folder(tmp_path, run)
    wait_for((folder / "checkpoint.pt").exists)
    (worker,) = psutil.Process(process.pid).children()
    process.kill()
    wait_for(lambda: is_over(worker))
    wait_for(lambda: is_free(folder))
    assert holder(folder) is None
    assert not {"result.json", "failure.json"} & {path.name for path in folder.iterdir()}


def test_a_worker_that_hangs_does_not_outlive_a_sweep_that_is_killed(
    tmp_path: Path, runs: Runs, begin: Callable[..., BaseProcess]
) -> None:
    (run,) = (long(run) for run in runs(methods=["sign"], trials=1))
    process, folder = begin(sweep, run, tmp_path, 0.5), run_folder(tmp_path, run)
    wait_for((folder / "checkpoint.pt").exists)
    (worker,) = psutil.Process(process.pid).children()
    (guard,) = worker.children()
    worker.suspend()  # as one that is stuck in compiled code, and holds the interpreter
    process.kill()
    wait_for(lambda: is_over(worker))
    wait_for(lambda: is_over(guard))
    # A process counts as over while its last threads still close its files.
    wait_for(lambda: is_free(folder))


def is_free(folder: Path) -> bool:
    with claimed(folder) as ours:
        return ours


def test_one_run_gets_one_worker_which_takes_no_module_from_the_current_folder_nor_another_package_of_this_name(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[str]]
) -> None:
    here, first = tmp_path / "here", tmp_path / "first"
    for folder, name in ((here, "random"), (here, "tqdm"), (here, "scipy"), (first / "mpt_bihalf", "__init__")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(here)
    monkeypatch.setattr(local.sys, "path", ["", str(here), str(first), *local.sys.path])
    (outcome,) = do(runs(methods=["sign"], trials=1), tmp_path / "out", jobs=4)
    assert outcome.error == ""
    assert len(started) == 1


def test_a_worker_looks_for_modules_where_the_sweep_does_but_in_the_current_folder_last_and_only_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, link, gone = tmp_path / "here", tmp_path / "link", tmp_path / "gone"
    here.mkdir()
    link.symlink_to(here)
    monkeypatch.chdir(here)
    monkeypatch.setattr(local.sys, "path", ["", str(tmp_path), str(here), ".", str(link), str(gone)])
    assert local.search_path() == [str(tmp_path), str(gone)]
    monkeypatch.setattr(local, "PACKAGE_PARENT", here)
    assert local.search_path() == [str(tmp_path), str(gone), str(here)]


@pytest.mark.parametrize(
    ("options", "threads", "cores", "devices", "device", "jobs", "shares"),
    [
        ({}, 1, 4, 0, "cpu", 4, ["", "", "", ""]),
        ({}, 1, 64, 0, "cpu", 8, [""] * 8),
        ({}, 4, 4, 8, "cpu", 1, [""]),
        ({}, 8, 4, 0, "cpu", 1, [""]),
        ({"jobs": 3}, 4, 4, 0, "cpu", 3, ["", "", ""]),
        ({}, 8, 8, 2, "cuda", 2, ["0", "1"]),
        ({"runs_per_device": 2}, 8, 8, 2, "cuda", 4, ["0", "1", "0", "1"]),
        ({"jobs": 3, "runs_per_device": 2}, 8, 8, 2, "cuda", 3, ["0", "1", "0"]),
    ],
)
def test_cores_and_accelerators_are_divided(
    options: dict[str, int],
    threads: int,
    cores: int,
    devices: int,
    device: str,
    jobs: int,
    shares: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: cores)
    monkeypatch.setattr(local, "accelerators", lambda: devices)
    engine = LocalEngine(tmp_path, [Run(threads=threads, device=device)], EngineOptions(**options))
    assert engine.jobs == jobs
    assert [engine.accelerator(worker) for worker in range(jobs)] == shares

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpt_bihalf.signals import Stopped
from mpt_bihalf.sweep import work
from mpt_bihalf.sweep.claim import claimed
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.sweep.work import failed, perform
from mpt_bihalf.training import Run

Runs = Callable[..., list[Run]]


def test_a_run_is_done_once(tmp_path: Path, runs: Runs) -> None:
    (run, *_) = runs(methods=["sign"])
    first = perform(run, tmp_path)
    assert first.result is not None
    assert first.result["status"] == "finished"
    written = {file: file.stat().st_mtime_ns for file in run_folder(tmp_path, run).iterdir() if file.suffix == ".csv"}
    assert perform(run, tmp_path) == first
    assert {file: file.stat().st_mtime_ns for file in written} == written


def test_a_run_that_is_done_is_claimed_by_nobody(tmp_path: Path, runs: Runs) -> None:
    (run, *_) = runs(methods=["sign"])
    first = perform(run, tmp_path)
    lock = run_folder(tmp_path, run) / "claim.lock"
    lock.unlink()
    assert perform(run, tmp_path) == first
    assert not lock.exists()


def test_what_a_killed_process_left_of_a_failure_goes_with_the_failure(tmp_path: Path, runs: Runs) -> None:
    (run, *_) = runs(methods=["sign"])
    folder = run_folder(tmp_path, run)
    folder.mkdir(parents=True)
    (folder / ".failure.json.0123456789ab").write_text("{")
    perform(run, tmp_path)
    assert not list(folder.glob(".*"))


def test_a_failure_is_not_left_where_somebody_else_does_the_run_or_has_done_it(tmp_path: Path, runs: Runs) -> None:
    (run, *_) = runs(methods=["sign"])
    failure = run_folder(tmp_path, run) / "failure.json"
    with claimed(failure.parent):
        assert failed(run, tmp_path, "its process died").error == "its process died"
    assert not failure.exists()
    perform(run, tmp_path)
    failed(run, tmp_path, "its process died")
    assert not failure.exists()


def test_a_run_that_somebody_does_is_left_to_them(tmp_path: Path, runs: Runs) -> None:
    (run, *_) = runs(methods=["sign"])
    with claimed(run_folder(tmp_path, run)):
        outcome = perform(run, tmp_path)
    assert (outcome.result, outcome.error) == (None, "")
    assert not (run_folder(tmp_path, run) / "config.json").exists()


def test_a_run_that_fails_says_why_until_it_is_done(tmp_path: Path, runs: Runs) -> None:
    (run, *_) = runs(methods=["sign"])
    failure = run_folder(tmp_path, run) / "failure.json"
    lost = replace(run, data=f"folder:{tmp_path}/none")
    before = time.time()
    outcome = perform(lost, tmp_path)
    assert outcome.result is None
    told = json.loads((run_folder(tmp_path, lost) / "failure.json").read_text())
    assert told["error"] == outcome.error
    assert "none" in outcome.error
    assert "Traceback" in told["traceback"]
    assert before <= told["when"] <= time.time()
    failure.parent.mkdir()
    failure.write_text("{}")
    assert perform(run, tmp_path).result is not None
    assert not failure.exists()


def test_a_diverged_run_is_a_result(tmp_path: Path, runs: Runs) -> None:
    (run, *_) = runs(methods=["sign"], grid=["batch_size=700", "lr=1e38", "weight_decay=10"])
    outcome = perform(run, tmp_path)
    assert outcome.result == {"status": "diverged: NaN in layer '0' in epoch 1"}


def test_want_of_memory_is_told_as_that_and_harms_nothing(tmp_path: Path, runs: Runs) -> None:
    pytest.importorskip("resource")
    first, second, third = runs(methods=["sign"], trials=3, grid=["batch_size=100"])
    large = replace(second, batch_size=1400, width=1.0)
    code = """if True:
        import resource, sys
        from mpt_bihalf.sweep.work import perform
        from mpt_bihalf.training import Run
        from pathlib import Path
        before, large, after = (Run(**eval(text)) for text in sys.argv[2:])
        print(perform(before, Path(sys.argv[1])).error)
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 60 * 2**20, -1))
        print(perform(large, Path(sys.argv[1])).error)
        print(perform(after, Path(sys.argv[1])).error)
    """
    arguments = [str(tmp_path), *(repr(vars(run)) for run in (first, large, third))]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    errors = done.stdout.splitlines()
    assert (errors[0], errors[2]) == ("", "")
    assert errors[1].startswith("out of memory: ")
    assert perform(large, tmp_path).result is not None


def test_an_end_that_was_asked_for_is_no_failure_whatever_comes_of_it(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object) -> None:
        try:
            raise Stopped(signal.SIGTERM)
        finally:
            raise OSError("no sound state to clean up")

    monkeypatch.setattr(work, "train", train)
    (run, *_) = runs(methods=["sign"])
    with pytest.raises(Stopped):
        perform(run, tmp_path)
    assert not (run_folder(tmp_path, run) / "failure.json").exists()

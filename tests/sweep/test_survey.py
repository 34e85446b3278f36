from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf.sweep import find_runs
from mpt_bihalf.sweep.plan import write_plan
from mpt_bihalf.sweep.status import duration, status_text
from mpt_bihalf.sweep.survey import survey
from mpt_bihalf.training import Run

Folder = Any
COMMAND = ["python", "sweep.py", "--rates", "0.1,0.5"]


def states(out: Path) -> list[str]:
    return [status.state for status in survey(out).runs]


def only(out: Path, state: str) -> Any:
    (status,) = survey(out).of(state)
    return status


def test_each_planned_run_is_in_the_state_that_its_folder_shows(folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, grid, COMMAND)
    folder.done(grid[0])
    folder.diverged(grid[1])
    folder.begun(grid[3], 2, failure={"error": "out of memory", "traceback": "...", "when": 1e9})
    folder.begun(grid[4], 3, claim={"host": "gone", "pid": 1, "since": 1e9})
    folder.begun(grid[5], 4)
    with folder.running(grid[2]):
        assert states(folder.out) == [
            "done",
            "diverged",
            "running",
            "failed",
            "interrupted",
            "interrupted",
            "missing",
            "missing",
        ]
        assert survey(folder.out).counts == {
            "done": 1,
            "diverged": 1,
            "running": 1,
            "failed": 1,
            "interrupted": 2,
            "missing": 2,
            "unreadable": 0,
        }


def test_without_a_plan_runs_are_found_and_none_is_missing(folder: Folder, grid: list[Run]) -> None:
    folder.done(grid[5])
    folder.begun(grid[0], 1)
    assert [(status.run, status.state) for status in survey(folder.out).runs] == [
        (grid[0], "interrupted"),
        (grid[5], "done"),
    ]
    assert "what is missing is not known" in status_text(survey(folder.out))


def test_a_run_that_is_in_no_plan_is_counted_beside_the_planned(folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, grid[:1], COMMAND)
    folder.done(grid[2])
    assert [status.run for status in survey(folder.out).runs] == [grid[0], grid[2]]


def test_a_running_run_tells_its_epoch_its_last_figures_and_who_does_it(folder: Folder, grid: list[Run]) -> None:
    with folder.running(grid[0], epochs=4, host="gpu1", pid=4021, since=time.time() - 600):
        status = only(folder.out, "running")
        text = status_text(survey(folder.out), columns=120)
    assert (status.epoch, status.figures["test_top1"], status.figures["train_loss"]) == (4, 64.0, 0.25)
    for word in (grid[0].name, "4/10", "64.00 %", "0.25", "gpu1:4021", "10 min"):
        assert word in text


def test_the_time_left_of_a_run_is_its_own_pace_for_the_epochs_left(folder: Folder, grid: list[Run]) -> None:
    since = time.time() - 400
    with folder.running(grid[0], epochs=4, since=since) as place:
        os.utime(place / "metrics.csv", (since + 400, since + 400))
        found = survey(folder.out)
        assert found.seconds_left(only(folder.out, "running")) == pytest.approx(600, abs=20)


def test_a_run_that_was_gone_on_with_does_not_tell_its_pace(folder: Folder, grid: list[Run]) -> None:
    with folder.running(grid[0], epochs=9, since=time.time() - 10) as place:
        for session in (1, 2):
            (place / f"events.out.tfevents.{session}").touch()
        assert survey(folder.out).seconds_left(only(folder.out, "running")) is None
        assert "unknown" in status_text(survey(folder.out))


def test_the_work_left_is_counted_by_the_pace_of_done_runs_of_the_same_network_and_data(
    folder: Folder, grid: list[Run]
) -> None:
    write_plan(folder.out, grid[:4], COMMAND)
    folder.done(grid[0], times={"seconds": 100.0, "from_epoch": 0})
    folder.done(grid[1], times={"seconds": 50.0, "from_epoch": 5})
    folder.begun(grid[2], 4)
    assert survey(folder.out).work_left == pytest.approx(10 * 6 + 10 * 10)
    assert f"about {duration(160)} for one worker" in status_text(survey(folder.out))


def test_work_of_a_kind_that_was_never_timed_is_unknown(folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, [*grid[:2], Run(model="conv4", epochs=2)], COMMAND)
    folder.done(grid[0], times={"seconds": 100.0, "from_epoch": 0})
    assert survey(folder.out).work_left is None
    assert "unknown" in status_text(survey(folder.out))


@pytest.mark.parametrize("times", ["", "[]", '{"seconds": -5, "from_epoch": 0}', '{"seconds": NaN, "from_epoch": 0}'])
def test_times_that_are_none_tell_nothing(times: str, folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, grid[:2], COMMAND)
    folder.done(grid[0], times=times)
    assert survey(folder.out).work_left is None


def test_a_failed_run_tells_why_in_one_line_and_when(folder: Folder, grid: list[Run]) -> None:
    error = "RuntimeError: out of memory\n\x1b[2J\x1b]0;title\x07 trying \u202eagain" + "x" * 10_000
    folder.begun(grid[0], failure={"error": error, "traceback": "...", "when": time.time() - 3600 * 5})
    status, text = only(folder.out, "failed"), status_text(survey(folder.out))
    assert status.why.startswith("RuntimeError: out of memory [2J ]0;title trying again")
    assert "5 h 0 min ago" in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert max(map(len, text.splitlines())) <= max(100, len(str(folder.out)) + 60)


def test_an_attempt_after_a_failure_that_was_killed_is_interrupted_and_one_before_it_failed(
    folder: Folder, grid: list[Run]
) -> None:
    failure = {"error": "killed", "traceback": "", "when": 1000.0}
    folder.begun(grid[0], failure=failure, claim={"host": "h", "pid": 1, "since": 2000.0})
    folder.begun(grid[1], failure=failure, claim={"host": "h", "pid": 1, "since": 500.0})
    assert states(folder.out) == ["interrupted", "failed"]


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"error": {"a": [1]}, "when": "now"}', '{"when": 1e999}', "[" * 99_999]
)
def test_a_damaged_failure_is_a_failure(text: str, folder: Folder, grid: list[Run]) -> None:
    folder.begun(grid[0], failure=text)
    assert only(folder.out, "failed").why


METRICS = [
    "",
    "\n",
    "epoch",
    "epoch\nx",
    "epoch\nnan",
    "epoch\n-1",
    "epoch\n1.5",
    "epoch\n11",
    "epoch\n" + "9" * 5000,
    "a,b\n1,2",
    "\x00",
    ",".join("e" * 100_000),
]


@pytest.mark.parametrize("text", METRICS)
def test_metrics_that_are_none_tell_no_epoch(text: str, folder: Folder, grid: list[Run]) -> None:
    (folder.begun(grid[0]) / "metrics.csv").write_text(text)
    status = only(folder.out, "interrupted")
    assert (status.epoch, status.figures) == (0, {})
    status_text(survey(folder.out))


def test_a_result_that_is_none_leaves_the_run_to_do(folder: Folder, grid: list[Run]) -> None:
    folder.begun(grid[0], result='{"status": "finished"}')
    folder.begun(grid[1], result="{" * 100_000)
    os.mkfifo(folder.begun(grid[2]) / "result.json")
    assert states(folder.out) == ["interrupted"] * 3


def test_a_run_of_two_plans_is_to_be_done_by_the_later_command_once(folder: Folder, grid: list[Run]) -> None:
    earlier, later = write_plan(folder.out, grid[:4], ["first"]), write_plan(folder.out, grid[2:6], ["second"])
    os.utime(earlier, (1e9, 1e9))
    os.utime(later, (2e9, 2e9))
    assert survey(folder.out).to_do() == [(("second",), 4), (("first",), 2)]


def test_a_folder_whose_name_is_not_that_of_its_configuration_is_not_believed_but_counted(
    folder: Folder, grid: list[Run]
) -> None:
    folder.done(grid[0])
    folder.done(grid[1]).rename(folder.out / "runs" / "moved-by-hand")
    (folder.out / "runs" / "empty").mkdir()
    (folder.begun(grid[2]) / "config.json").write_text('{"model": "conv2"}')
    assert find_runs(folder.out) == [grid[0]]
    assert [status.run for status in survey(folder.out).runs] == [grid[0]]
    assert survey(folder.out).strangers == 3
    assert "3 folders" in status_text(survey(folder.out))


@pytest.mark.parametrize("make", [lambda out: None, Path.mkdir, Path.touch], ids=["nothing", "empty", "file"])
def test_what_holds_no_sweep_is_an_error(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(ValueError, match="no sweep in"):
        survey(tmp_path / "out")


def test_looking_changes_nothing(folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, grid, COMMAND)
    folder.done(grid[0])
    folder.begun(grid[1], 2, claim={"host": "gone", "pid": 1, "since": 1.0})

    def snapshot() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in folder.out.rglob("*")}

    before = snapshot()
    status_text(survey(folder.out))
    assert snapshot() == before

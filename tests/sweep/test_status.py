from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf.sweep import find_runs, read_records
from mpt_bihalf.sweep.plan import write_plan
from mpt_bihalf.sweep.status import duration, status_json, status_text, survey
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


def test_the_time_left_is_shared_by_those_who_work(folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, grid, COMMAND)
    folder.done(grid[0], times={"seconds": 36_000.0, "from_epoch": 0})
    with ExitStack() as stack:
        for run in grid[1:3]:
            stack.enter_context(folder.running(run, since=time.time()))
        found = survey(folder.out)
        assert found.work_left == pytest.approx(7 * 36_000, abs=10)
        assert "35 h 0 min with 2 running" in status_text(found)


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


def test_the_screen_says_what_is_left_and_what_goes_on_with_it(folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, grid, COMMAND)
    folder.done(grid[0])
    text = status_text(survey(folder.out))
    assert "7 runs to do" in text
    assert "python sweep.py --rates 0.1,0.5" in text


def test_a_sweep_that_is_done_has_nothing_to_go_on_with(folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, grid[:2], COMMAND)
    folder.done(grid[0])
    folder.diverged(grid[1])
    text = status_text(survey(folder.out))
    assert "100 %" in text
    assert "to do" not in text
    assert "time left" not in text


@pytest.mark.parametrize("columns", [40, 200])
def test_done_runs_with_a_note_are_named_with_it(columns: int, folder: Folder, grid: list[Run]) -> None:
    folder.done(grid[0])
    result = json.loads((folder.done(grid[1]) / "result.json").read_text())
    folder.begun(grid[2], result={**result, "note": "it looks at\nnothing"})
    text = status_text(survey(folder.out), columns)
    noted = text.partition("\nnoted:\n")[2]
    assert "it looks at nothing" in noted and grid[2].name in noted
    assert grid[0].name not in noted and "2 done" not in noted
    told = status_json(survey(folder.out))["list"]
    assert {row["name"]: row.get("note") for row in told} == {
        grid[0].name: None,
        grid[1].name: None,
        grid[2].name: "it looks at nothing",
    }


def test_a_run_of_two_plans_is_to_be_done_by_the_later_command_once(folder: Folder, grid: list[Run]) -> None:
    earlier, later = write_plan(folder.out, grid[:4], ["first"]), write_plan(folder.out, grid[2:6], ["second"])
    os.utime(earlier, (1e9, 1e9))
    os.utime(later, (2e9, 2e9))
    assert survey(folder.out).to_do() == [(("second",), 4), (("first",), 2)]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_no_run_is_wider_than_the_screen_and_long_lists_are_cut(columns: int, folder: Folder) -> None:
    grid = [Run(seed=seed, epochs=3) for seed in range(100)]
    write_plan(folder.out, grid, COMMAND)
    for run in grid:
        folder.begun(run, 1, failure={"error": "word " * 50, "traceback": "", "when": 1e9})
    text = status_text(survey(folder.out), columns, lines=24)
    assert len(text.splitlines()) <= 24
    assert "of 100" in text
    if columns >= 80:
        assert max(map(len, text.splitlines())) <= max(columns, len(str(folder.out)) + 60)


def test_programs_get_every_run_with_its_state(folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, grid[:3], COMMAND)
    folder.done(grid[0])
    with folder.running(grid[1], epochs=2, since=1e9):
        told = json.loads(json.dumps(status_json(survey(folder.out)), allow_nan=False))
    assert (told["runs"], told["done"], told["running"], told["missing"]) == (3, 1, 1, 1)
    assert told["to_do"] == [{"command": COMMAND, "runs": 1}]
    assert [(row["name"], row["state"]) for row in told["list"]] == [
        (run.name, state) for run, state in zip(grid, ("done", "running", "missing"), strict=False)
    ]
    assert told["list"][1]["claim"] == {"host": "here", "pid": 7, "since": 1e9}
    assert (told["list"][1]["epoch"], told["list"][1]["epochs"]) == (2, 10)


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


@pytest.mark.parametrize("planned", [True, False])
def test_what_may_not_be_read_is_shown_as_such_and_the_others_are_told(
    planned: bool, folder: Folder, grid: list[Run], as_nobody: Callable[[], None]
) -> None:
    if planned:
        write_plan(folder.out, grid[:3], COMMAND)
    folder.done(grid[0]).chmod(0o000)
    place = folder.done(grid[1])
    (place / "result.json").chmod(0o000)
    folder.done(grid[2])
    as_nobody()
    found = survey(folder.out)
    assert found.counts["done"] == 1
    assert {status.name: status.why for status in found.of("unreadable")} == {
        grid[0].name: "Permission denied",
        grid[1].name: "Permission denied",
    }
    assert status_text(found).count("Permission denied") == 2
    assert [record["run"] for record in read_records(folder.out, grid[:3])] == [grid[2].name]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (7140, "119 min"), (12_000, "3 h 20 min"), (360_000, "4 d 4 h")],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from mpt_bihalf.sweep import read_records
from mpt_bihalf.sweep.plan import write_plan
from mpt_bihalf.sweep.status import duration, status_json, status_text
from mpt_bihalf.sweep.survey import survey
from mpt_bihalf.training import Run

Folder = Any
COMMAND = ["python", "sweep.py", "--rates", "0.1,0.5"]


def test_the_time_left_is_shared_by_those_who_work(folder: Folder, grid: list[Run]) -> None:
    write_plan(folder.out, grid, COMMAND)
    folder.done(grid[0], times={"seconds": 36_000.0, "from_epoch": 0})
    with ExitStack() as stack:
        for run in grid[1:3]:
            stack.enter_context(folder.running(run, since=time.time()))
        found = survey(folder.out)
        assert found.work_left == pytest.approx(7 * 36_000, abs=10)
        assert "35 h 0 min with 2 running" in status_text(found)


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

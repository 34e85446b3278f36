from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from mpt_bihalf.sweep.plan import find_plans, planned_runs, write_plan
from mpt_bihalf.training import Run


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    runs = [Run(skip=("first", "last"), seed=3), Run(schedule="step", milestones=(5, 8)), Run(data="folder:/é x")]
    write_plan(tmp_path, runs, ["python", "sweep.py", "--out", "a b"])
    (plan,) = find_plans(tmp_path)
    assert plan.command == ("python", "sweep.py", "--out", "a b")
    assert list(plan.runs) == runs
    assert planned_runs(find_plans(tmp_path)) == runs


def test_a_plan_has_the_command_of_this_process_unless_given_another(tmp_path: Path) -> None:
    write_plan(tmp_path, [Run()])
    assert list(find_plans(tmp_path)[0].command) == sys.orig_argv


def test_what_all_runs_have_in_common_is_written_once(tmp_path: Path) -> None:
    path = write_plan(tmp_path, [Run(seed=seed) for seed in range(1000)])
    plan = json.loads(path.read_text())
    assert plan["varied"] == ["seed"]
    assert plan["runs"][:3] == [[0], [1], [2]]
    assert path.stat().st_size < 10_000


def test_the_same_command_finds_its_plan_and_leaves_it(tmp_path: Path) -> None:
    runs = [Run(seed=0), Run(seed=1)]
    path = write_plan(tmp_path, runs, ["a"])
    before = path.stat()
    assert write_plan(tmp_path, [*runs, *runs], ["a"]) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_a_killed_process_left_of_a_plan_is_removed(tmp_path: Path) -> None:
    for _ in range(2):
        path = write_plan(tmp_path, [Run()], ["a"])
        assert list(path.parent.iterdir()) == [path]
        path.with_name(f".{path.name}.0123456789ab").write_text("{")


def test_another_command_for_the_same_runs_takes_its_place_and_other_runs_have_a_plan_of_their_own(
    tmp_path: Path,
) -> None:
    first = write_plan(tmp_path, [Run(seed=0)], ["a"])
    assert write_plan(tmp_path, [Run(seed=0)], ["b"]) == first
    write_plan(tmp_path, [Run(seed=1)], ["b"])
    assert [plan.command for plan in find_plans(tmp_path)] == [("b",), ("b",)]


def test_planned_runs_stand_once_in_order_of_the_plans_by_time(tmp_path: Path) -> None:
    a, b, c = (Run(seed=seed) for seed in range(3))
    later = write_plan(tmp_path, [b, a])
    earlier = write_plan(tmp_path, [c, b])
    os.utime(later, (2e9, 2e9))
    os.utime(earlier, (1e9, 1e9))
    assert planned_runs(find_plans(tmp_path)) == [c, b, a]


def test_a_folder_without_plans_has_none(tmp_path: Path) -> None:
    assert planned_runs(find_plans(tmp_path)) == planned_runs(find_plans(tmp_path / "nothing")) == []
    (tmp_path / "sweeps").write_text("a file")
    assert planned_runs(find_plans(tmp_path)) == []


def test_an_empty_plan_is_one(tmp_path: Path) -> None:
    write_plan(tmp_path, [])
    assert [plan.runs for plan in find_plans(tmp_path)] == [()]


PLAN = {"command": ["a"], "common": {}, "varied": [], "runs": []}
BROKEN = ["", "{", "[]", "3", "{}", "[" * 100_000, "\x00"]
BROKEN += [
    json.dumps({**PLAN, **change})
    for change in (
        {"command": [1]},
        {"command": 3},
        {"runs": [[]]},
        {"runs": [[1, 2]]},
        {"runs": [3]},
        {"runs": 3},
        {"common": [], "runs": [[]]},
        {"varied": ["seed"], "runs": [["x"]]},
        {"varied": [["seed"]], "runs": [[1]]},
    )
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_plan_is_passed_over(text: str, tmp_path: Path) -> None:
    write_plan(tmp_path, [Run()])
    (tmp_path / "sweeps" / "other.json").write_text(text)
    assert planned_runs(find_plans(tmp_path)) == [Run()]


def test_a_plan_with_a_field_of_another_type_is_passed_over(tmp_path: Path) -> None:
    path = write_plan(tmp_path, [Run()])
    plan = json.loads(path.read_text())
    plan["common"]["device"] = 3
    path.write_text(json.dumps(plan))
    assert planned_runs(find_plans(tmp_path)) == []


def test_a_plan_that_never_ends_is_passed_over(tmp_path: Path) -> None:
    write_plan(tmp_path, [Run()])
    os.mkfifo(tmp_path / "sweeps" / "pipe.json")
    assert planned_runs(find_plans(tmp_path)) == [Run()]

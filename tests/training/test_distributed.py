"""Runs that several processes train together, started as torchrun does, and some by torchrun itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.distributed import TCPStore

from tests.processes import Program

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
SEVERAL = str(Path(__file__).with_name("several.py"))
ENDS = ("metrics.csv", "layers.csv", "result.json")

COMMON = {"data": "digits", "image_size": 16, "batch_size": 64, "epochs": 1, "threads": 1, "device": "cpu"}
CONV = {**COMMON, "model": "conv4", "width": 0.125, "prune_rate": 0.6}
RUNS = [
    {**CONV, "method": "mpt-bihalf"},
    {**CONV, "method": "mpt-balanced"},
    {**CONV, "method": "mpt-sign", "scope": "global"},
    {**COMMON, "model": "normed", "method": "bihalf", "sync_bn": True},
]
# A network of which so little is left that it looks at no image.
PRUNED = {**CONV, "method": "magnitude-sign", "prune_rate": 0.99}
# 22 steps an epoch; batch norm, a trace and an odd number of test images in it.
LONG = {**COMMON, "model": "normed", "method": "sign", "image_size": 0, "epochs": 3, "trace": 5}


def by_torchrun(out: Path, *runs: dict[str, Any], processes: int = 2, **environment: str) -> tuple[int, str, str]:
    """How torchrun ends whose processes train these runs, with what they have told."""
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [*TORCHRUN, str(processes), SEVERAL, str(out), *map(json.dumps, runs)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def start(place: Path, *command: str, processes: int = 2, **environment: str) -> tuple[TCPStore, list[Program]]:
    """A program in several processes, as torchrun starts them; the test is their agent, which has the store."""
    place.mkdir(exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
        **{"TORCHELASTIC_RUN_ID": "some", "TORCHELASTIC_RESTART_COUNT": "0"},
        **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)},
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return store, [Program(place, *command, **common, **rank, **environment) for rank in ranks]


def several(processes: int, out: Path, *runs: dict[str, Any]) -> list[tuple[int, str, str]]:
    """How the processes end that train these runs, with what each told."""
    command = (SEVERAL, str(out), *map(json.dumps, runs))
    if processes == 1:
        out.mkdir(exist_ok=True)
        return [Program(out, *command).ended()]
    _store, started = start(out, *command, processes=processes)
    return [program.ended() for program in started]


def ours(err: str) -> list[str]:
    """The lines on standard error that are not torchrun's own."""
    return [line for line in err.splitlines() if line.startswith(("error:", "interrupted:"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of `RUNS`, trained by one process and by two; the latter trained `LONG` and `PRUNED` too."""
    alone, two = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    for processes, place, runs in ((1, alone, RUNS), (2, two, [*RUNS, LONG, PRUNED])):
        told = "".join(f"trained {run['method']}\n" for run in runs)  # by the first process alone
        assert several(processes, place, *runs) == [(0, told, ""), *[(0, "", "")] * (processes - 1)]
    return alone, two


def steps(folder: Path, method: str, rank: int) -> list[dict[str, Any]]:
    return torch.load(folder / f"steps-{method}-{rank}.pt")


@pytest.mark.parametrize("run", RUNS, ids=[str(run["method"]) for run in RUNS])
def test_two_processes_do_in_each_step_what_one_does(made: tuple[Path, Path], run: dict[str, Any]) -> None:
    method = run["method"]
    alone, (first, second) = steps(made[0], method, 0), (steps(made[1], method, rank) for rank in (0, 1))
    assert len(alone) == len(first) == len(second) == 20
    for whole, one, other in zip(alone, first, second, strict=True):
        assert (whole["images"], one["images"], other["images"]) == (64, 32, 32)
        assert one["parameters"] == other["parameters"]
        for layer, binary in whole["binary"].items():
            assert torch.equal(one["binary"][layer], other["binary"][layer])
            assert torch.equal(one["binary"][layer], binary), layer
        loss, hits, _ = (one["totals"] + other["totals"]).tolist()
        tolerance = 1e-4 if run["model"] == "normed" else 1e-5
        assert loss / 64 == pytest.approx(whole["totals"][0].item() / 64, abs=tolerance)
        assert hits == whole["totals"][1]
    binaries = [entry["binary"] for entry in alone]
    changed = sum(int((binaries[-1][layer] != binaries[0][layer]).sum()) for layer in binaries[0])
    assert changed > 20  # there was something to agree in


@pytest.mark.parametrize("run", RUNS, ids=[str(run["method"]) for run in RUNS])
def test_the_figures_are_of_all_images_each_counted_once(made: tuple[Path, Path], run: dict[str, Any]) -> None:
    alone, two = (json.loads((folder / run["method"] / "result.json").read_text()) for folder in made)
    assert alone.keys() == two.keys()
    assert "note" not in alone
    for name, value in alone.items():
        # 360 test images in batches of 11: 17 for one process, 16 for the other. An image more would change the share.
        tolerance = {"loss": 1e-4, "top1": 1e-6, "top5": 1e-6}.get(name.rsplit("_", maxsplit=1)[-1], 0)
        assert two[name] == (value if isinstance(value, str) else pytest.approx(value, abs=tolerance)), name


def test_logits_that_are_the_same_in_both_processes_are_noted(made: tuple[Path, Path]) -> None:
    result = json.loads((made[1] / PRUNED["method"] / "result.json").read_text())
    assert result["note"] == "the network gives the same logits for every test image"


def test_the_first_process_alone_writes(made: tuple[Path, Path]) -> None:
    for folder in (made[1] / run["method"] for run in [*RUNS, LONG]):
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events"))
        trace = ["trace", "trace.csv"] * (folder.name == LONG["method"])
        expected = ["checkpoint.pt", "config.json", "data.json", "environment.json", "layers.csv", "metrics.csv"]
        assert names == sorted([*expected, "result.json", "times.json", "SHA256SUMS", *trace])
        assert len(list(folder.glob("events*"))) == 1
        assert json.loads((folder / "config.json").read_text())["processes"] == 2


def assert_as_untroubled(made: tuple[Path, Path], folder: Path) -> None:
    untroubled = made[1] / LONG["method"]
    for name in (*ENDS, "trace.csv"):
        assert (folder / name).read_text() == (untroubled / name).read_text(), name
    one, other = (torch.load(place / "checkpoint.pt")["model"] for place in (folder, untroubled))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_torchrun_ends_all_with_a_process_killed_and_the_same_command_goes_on_to_the_same_bits(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    at = {"rank": 1, "step": 30, "signal": signal.SIGKILL}  # in the second epoch
    status, out, err = by_torchrun(tmp_path, LONG, AT=json.dumps(at))
    assert status == 1 and out == ""
    (line,) = ours(err)
    assert line.startswith("interrupted: another process of the run was killed; the same command goes on")
    folder = tmp_path / str(LONG["method"])
    assert len(pd.read_csv(folder / "metrics.csv")) == 1 and not (folder / "result.json").exists()
    assert several(2, tmp_path, LONG) == [(0, f"trained {LONG['method']}\n", ""), (0, "", "")]
    assert json.loads((folder / "times.json").read_text())["from_epoch"] == 1
    assert_as_untroubled(made, folder)


def ordered(out: Path, at: dict[str, Any], *hooks: dict[str, Any], terminated: int = 1) -> list[tuple[int, list[str]]]:
    """Status and lines of two processes that train `LONG`, when what befalls them comes in the order of the hooks.

    As their agent the test notes in the store who is gone, and sends SIGTERM to the one `terminated` once the other is;
    else the hooks send it.
    """
    events = {"AT": json.dumps(at), "HOOKS": json.dumps(hooks), "FAILS_TOO": "2"}
    store, programs = start(out, SEVERAL, str(out), json.dumps(LONG), **events)
    processes = [program.process for program in programs]
    first = [process.sentinel for process in processes].index(wait([process.sentinel for process in processes])[0])
    store.set(f"gone {first}", "")
    if first != terminated:
        os.kill(processes[terminated].pid, signal.SIGTERM)
    return [(status, ours(err)) for status, _, err in (program.ended() for program in programs)]


LOST = "interrupted: another process of the run was killed; the same command "
KILLED = {"step": 3, "signal": int(signal.SIGKILL)}
ASKED = {"step": 3, "signal": int(signal.SIGTERM)}


def told_at(place: str, call: int = 1) -> dict[str, Any]:
    """SIGTERM comes to the first process at this place, once the other is gone."""
    return {"rank": 0, "place": place, "call": call, "awaits": "gone 1", "signal": int(signal.SIGTERM)}


@pytest.mark.parametrize(
    "hook",
    [
        told_at("mpt_bihalf.distributed._by_others"),  # torch has just raised for the process that is gone
        *(
            pytest.param(told_at(*place), marks=pytest.mark.slow)
            for place in [
                ("mpt_bihalf.training.loop.train_step", 4),  # the collective of this step is yet to fail
                ("mpt_bihalf.distributed._lost",),
                ("torch.distributed.destroy_process_group",),
                ("mpt_bihalf.training.loop.say_also",),
                ("mpt_bihalf.distributed.is_to_tell",),
            ]
        ),
    ],
    ids=lambda hook: hook["place"],
)
def test_when_the_signal_comes_to_who_is_left_does_not_matter(tmp_path: Path, hook: dict[str, Any]) -> None:
    (status, lines), (killed, silent) = ordered(tmp_path, {"rank": 1, **KILLED}, hook)
    assert (status, lines) == (130, [LOST + "begins this run anew"])
    assert (killed, silent) == (-signal.SIGKILL, [])
    assert not (tmp_path / str(LONG["method"]) / "checkpoint.pt").exists()


@pytest.mark.slow
def test_who_waits_for_one_that_never_comes_still_ends_when_asked(tmp_path: Path) -> None:
    dies = {"rank": 1, "place": "mpt_bihalf.distributed._group", "signal": int(signal.SIGKILL)}
    (status, lines), _ = ordered(tmp_path, {}, dies, terminated=0)
    assert (status, lines) == (143, ["interrupted: the same command goes on from here"])


@pytest.mark.slow
def test_in_evaluation_too_what_is_kept_decides(tmp_path: Path) -> None:
    dies = {"rank": 1, "place": "mpt_bihalf.training.step._logits", "call": 75, "signal": int(signal.SIGKILL)}
    (status, lines), _ = ordered(tmp_path, {}, dies)
    assert (status, lines) == (130, [LOST + "goes on from the last checkpoint"])
    assert torch.load(tmp_path / str(LONG["method"]) / "checkpoint.pt")["step"] == 0


@pytest.mark.slow
def test_who_dies_after_all_have_stopped_takes_nothing_away(tmp_path: Path) -> None:
    dies = {"rank": 1, "place": "mpt_bihalf.distributed._await", "call": 2, "signal": int(signal.SIGKILL)}
    writes = {"rank": 0, "place": "mpt_bihalf.training.record.save_checkpoint", "awaits": "gone 1"}
    (status, lines), (killed, silent) = ordered(tmp_path, {"rank": 1, **ASKED}, dies, writes)
    assert (status, lines) == (143, ["interrupted: the same command goes on from here"])
    assert (killed, silent) == (-signal.SIGKILL, [])
    assert torch.load(tmp_path / str(LONG["method"]) / "checkpoint.pt")["step"] in (4, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "place", "reason"),
    [
        ({"rank": 0, **KILLED}, None, "another process of the run was killed; "),
        ({"rank": 0, **ASKED}, "mpt_bihalf.training.record.save_checkpoint", ""),
        ({"rank": 0, **ASKED}, "mpt_bihalf.distributed.is_to_tell", ""),
    ],
)
def test_where_the_first_process_is_gone_another_tells_what_holds_in_any_case(
    tmp_path: Path, at: dict[str, Any], place: str | None, reason: str
) -> None:
    dies = [{"rank": 0, "place": place, "signal": int(signal.SIGKILL)}] if place else []
    (killed, silent), (_, lines) = ordered(tmp_path, at, *dies)
    assert (killed, silent) == (-signal.SIGKILL, [])
    assert lines == [f"interrupted: {reason}the same command goes on from the last checkpoint, if there is one"]


@pytest.mark.slow
def test_the_process_that_writes_tells_what_could_not_be_written(tmp_path: Path) -> None:
    hooks = [
        {"rank": 1, "place": "mpt_bihalf.distributed._await", "call": 2, "signal": int(signal.SIGTERM)},
        {"rank": 1, "place": "mpt_bihalf.distributed.is_to_tell"},
        {"rank": 0, "place": "mpt_bihalf.training.record.save_checkpoint", "awaits": "is_to_tell 1", "full": True},
    ]
    (status, (line,)), (_, silent) = ordered(tmp_path, {"rank": 1, **ASKED}, *hooks)
    assert status == 143 and silent == []
    assert "lost ([Errno 28] No space left on device); the same command begins this run anew" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "signum"),
    [("launcher", "SIGTERM"), ("launcher", "SIGINT"), (0, "SIGTERM"), (1, "SIGTERM"), (1, "SIGINT")],
)
def test_asked_to_end_all_stop_at_the_same_step_and_keep_what_they_have(
    made: tuple[Path, Path], tmp_path: Path, who: str | int, signum: str
) -> None:
    at = {"rank": who, "step": 30, "signal": int(signal.Signals[signum])}
    status, out, err = by_torchrun(tmp_path, LONG, AT=json.dumps(at))
    assert status != 0 and out == ""
    assert ours(err) == ["interrupted: the same command goes on from here"]
    folder = tmp_path / str(LONG["method"])
    content = torch.load(folder / "checkpoint.pt")
    # That of the launcher comes to the processes some steps later.
    assert content["step"] in ((9, 10) if who != "launcher" else range(9, 23))
    assert content["under_way"]["totals"].shape == (2, 3)
    assert by_torchrun(tmp_path, LONG)[0] == 0
    assert_as_untroubled(made, folder)


@pytest.mark.slow
def test_the_first_process_killed_ends_all_with_a_line(made: tuple[Path, Path], tmp_path: Path) -> None:
    at = {"rank": 0, "step": 30, "signal": signal.SIGKILL}
    status, _, err = by_torchrun(tmp_path, LONG, AT=json.dumps(at))
    assert status == 1
    (line,) = ours(err)
    assert "was killed; the same command goes on" in line
    assert by_torchrun(tmp_path, LONG)[0] == 0
    assert_as_untroubled(made, tmp_path / str(LONG["method"]))


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "who"), [(0, "the first"), (1, "another")])
def test_an_error_in_one_process_ends_all_and_is_told_by_the_first(
    made: tuple[Path, Path], tmp_path: Path, rank: int, who: str
) -> None:
    status, out, err = by_torchrun(tmp_path, LONG, AT=json.dumps({"rank": rank, "step": 30, "signal": 0}))
    assert status == 1 and out == ""
    assert ours(err) == [f"error: {who} process of the run failed: ValueError: no memory left, say"]
    assert by_torchrun(tmp_path, LONG)[0] == 0
    assert_as_untroubled(made, tmp_path / str(LONG["method"]))


@pytest.mark.slow
def test_an_unusable_checkpoint_is_put_aside_once_by_all(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / str(LONG["method"])
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"nothing")
    status, _, err = by_torchrun(tmp_path, LONG)
    assert status == 0 and err.count("starts over") == 1
    assert len(list(folder.glob("unusable-*"))) == 1
    assert_as_untroubled(made, folder)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3])
def test_a_resumed_run_of_more_processes_has_the_same_bits(tmp_path: Path, processes: int) -> None:
    run = {**LONG, "batch_size": 63, "method": "mpt-bihalf", "train_affine": True}
    assert by_torchrun(tmp_path / "whole", run, processes=processes)[0] == 0
    at = {"rank": 2, "step": 30, "signal": signal.SIGTERM}
    assert by_torchrun(tmp_path / "cut", run, processes=processes, AT=json.dumps(at))[0] != 0
    assert by_torchrun(tmp_path / "cut", run, processes=processes)[0] == 0
    for name in ENDS:
        whole, cut = ((tmp_path / place / "mpt-bihalf" / name).read_text() for place in ("whole", "cut"))
        assert whole == cut, name


@pytest.mark.slow
def test_every_method_and_what_trains_nothing_at_all_can_be_trained_together(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [
        {**COMMON, "image_size": 0, "model": "normed", "method": method}
        for method in ("dense", "irnet", "bihalf", "mpt-bihalf", "mpt-balanced", "magnitude-sign", "magnitude-bihalf")
    ]
    runs.append({**COMMON, "image_size": 0, "model": "conv2", "width": 0.1, "method": "bop", "precision": "fp16"})
    runs.append({**COMMON, "image_size": 0, "model": "conv2", "width": 0.1, "method": "mpt-sign", "learn_mask": False})
    status, out, err = by_torchrun(tmp_path, *runs)
    assert (status, ours(err)) == (0, [])
    assert out.count("trained") == len(runs)
    for run in runs:
        first, second = (steps(tmp_path, run["method"], rank) for rank in (0, 1))
        assert [step["parameters"] for step in first] == [step["parameters"] for step in second]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bihalf", "mpt-bihalf"])
def test_a_resnet18_with_synchronised_batch_norm_trains_in_two_processes_as_in_one(tmp_path: Path, method: str) -> None:
    run = {**COMMON, "model": "double_resnet18", "width": 0.25, "method": method, "sync_bn": True, "lr": 0.01}
    for processes in (1, 2):
        assert {status for status, *_ in several(processes, tmp_path / str(processes), run)} == {0}
    alone = steps(tmp_path / "1", method, 0)
    pairs = zip(*(steps(tmp_path / "2", method, rank) for rank in (0, 1)), strict=True)
    for whole, (one, other) in zip(alone, pairs, strict=True):
        assert all(torch.equal(one["binary"][layer], binary) for layer, binary in whole["binary"].items())
        loss = (one["totals"] + other["totals"])[0] / 64
        assert loss.item() == pytest.approx(whole["totals"][0].item() / 64, abs=1e-5)


PROBLEMS: list[tuple[list[str], str]] = [
    (["--batch-size", "63"], "error: batch_size 63 cannot be divided evenly among 2 processes"),
    (["--processes", "4"], "error: processes is 4, but this command was started with 2"),
    (["--method", "nothing"], "error: unknown method 'nothing'"),
    (["--unknown"], "error: unrecognized arguments: --unknown"),
]


@pytest.mark.parametrize(("arguments", "message"), PROBLEMS)
def test_a_mistake_is_told_once_before_anything_is_written(tmp_path: Path, arguments: list[str], message: str) -> None:
    _store, (first, second) = start(tmp_path, "mpt_bihalf", "train", "--out", str(tmp_path / "out"), *arguments)
    status, out, err = first.ended()
    assert (status, out) == (2, "") and err.startswith(message) and err.count("\n") == 1
    assert second.ended()[1:] == ("", "")
    assert not (tmp_path / "out").exists()

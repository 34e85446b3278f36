"""Rounds of iterative pruning in sweeps: in order, on every engine, and after SIGKILL in each of them."""

from __future__ import annotations

import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf.sweep import EngineOptions, run_all
from mpt_bihalf.sweep.claim import claimed
from mpt_bihalf.sweep.engines.serial import SerialEngine
from mpt_bihalf.sweep.order import Order
from mpt_bihalf.sweep.plan import find_plans, write_plan
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.sweep.run_all import RunsFailed, with_rounds
from mpt_bihalf.sweep.survey import survey
from mpt_bihalf.sweep.work import Outcome
from mpt_bihalf.training import Run, train
from mpt_bihalf.training.chain import rounds_before
from tests.processes import AT_STEP, Program

RECORDS = ("result.json", "metrics.csv", "layers.csv", "config.json", "parent.json")
SERIAL, TWO = EngineOptions(engine="serial"), EngineOptions(jobs=2)
SETTINGS: dict[str, Any] = {"width": 0.1, "epochs": 1, "batch_size": 700, "device": "cpu", "threads": 1}


def chains(trials: int = 1, **fields: Any) -> list[Run]:
    """Runs of three rounds after the unpruned one."""
    run = Run(**{**SETTINGS, "method": "bihalf", "mask": "imp", "imp_share": 0.5, "prune_rate": 0.8, **fields})
    return [replace(run, seed=seed).resolved() for seed in range(trials)]


def records_of(out: Path, runs: list[Run]) -> dict[tuple[str, str], bytes]:
    folders = {run.hash: run_folder(out, run) for run in with_rounds(runs)}
    return {
        (key, name): (folder / name).read_bytes()
        for key, folder in folders.items()
        for name in RECORDS
        if name != "parent.json" or (folder / name).exists()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chains, each run trained by itself in order."""
    out = tmp_path_factory.mktemp("whole")
    for run in with_rounds(chains(2)):
        train(run, run_folder(out, run), callbacks=[])
    return out


@pytest.mark.parametrize("options", [SERIAL, TWO])
def test_a_sweep_does_the_rounds_in_order_with_the_same_bits(
    options: EngineOptions, whole: Path, tmp_path: Path
) -> None:
    runs = chains(2)
    run_all(runs, tmp_path, options)
    assert records_of(tmp_path, runs) == records_of(whole, runs)
    assert len(with_rounds(runs)) == 8
    assert {run.hash for plan in find_plans(tmp_path) for run in plan.runs} == {run.hash for run in with_rounds(runs)}
    assert survey(tmp_path).counts["done"] == 8
    times = {run: (run_folder(tmp_path, run) / "result.json").stat().st_mtime_ns for run in with_rounds(runs)}
    for run in runs:
        rounds = [*rounds_before(run), run]
        assert [times[each] for each in rounds] == sorted(times[each] for each in rounds)
    # Another rate shares the rounds that are there.
    run_all(chains(2, prune_rate=0.6), tmp_path, options)
    assert all((run_folder(tmp_path, run) / "result.json").stat().st_mtime_ns == then for run, then in times.items())


def test_ray_does_the_rounds_in_order_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    runs = chains(2)
    run_all(runs, tmp_path, EngineOptions(engine="ray", jobs=2))
    assert records_of(tmp_path, runs) == records_of(whole, runs)


@pytest.mark.parametrize("rewind", ["", "3it"])
def test_killed_in_each_round_the_same_command_ends_with_the_same_bits(rewind: str, tmp_path: Path) -> None:
    # Of 5 steps an epoch, two epochs a run; --rewind 3it trains 3 steps more in each round.
    (run,) = chains(rewind=rewind, epochs=2, batch_size=256)
    options = ["--methods", "bihalf", "--rates", "0.8", "--width", "0.1", "--epochs", "2", "--trials", "1"]
    options += ["--device", "cpu", "--threads", "1", "--engine", "serial", "--out", str(tmp_path / "out"), "--grid"]
    options += ["mask=imp", "imp_share=0.5", "batch_size=256", *([f"rewind={rewind}"] if rewind else [])]
    script, rewound = "mpt_bihalf.experiments.prune_sweep", 3 if rewind else 0
    place = tmp_path / "printed"
    place.mkdir()
    # In the second epoch of each round: the first session does round 0 before, the others go on from the first epoch.
    for number, step in ((1, 10 + rewound + 8), (2, 5 + rewound + 8), (3, 5 + rewound + 8)):
        killed = Program(place, AT_STEP, str(step), str(int(signal.SIGKILL)), script, *options)
        assert killed.ended()[0] == -signal.SIGKILL
        rounds = [run_folder(tmp_path / "out", each) for each in with_rounds([run])]
        assert [(folder / "result.json").exists() for folder in rounds] == [number > each for each in range(4)]
        assert (rounds[number] / "checkpoint.pt").exists()
    status, _, err = Program(place, script, *options).ended()
    assert status == 0, err
    alone = tmp_path / "alone"
    for each in with_rounds([run]):
        train(each, run_folder(alone, each), callbacks=[])
    assert records_of(tmp_path / "out", [run]) == records_of(alone, [run])
    assert json.loads((run_folder(tmp_path / "out", run) / "times.json").read_text())["from_epoch"] == 1


def test_a_round_whose_parent_lost_its_checkpoint_has_it_done_again(whole: Path, tmp_path: Path) -> None:
    (run,) = chains()
    run_all([run], tmp_path, SERIAL)
    rounds, folder = rounds_before(run), run_folder(tmp_path, run)
    (folder / "result.json").unlink()
    (folder / "checkpoint.pt").unlink()
    lost = run_folder(tmp_path, rounds[-1])
    (lost / "checkpoint.pt").unlink()
    kept = (run_folder(tmp_path, rounds[-2]) / "result.json").stat().st_mtime_ns
    run_all([run], tmp_path, SERIAL)
    assert records_of(tmp_path, [run]) == records_of(whole, [run])
    assert (lost / "checkpoint.pt").exists()
    assert (run_folder(tmp_path, rounds[-2]) / "result.json").stat().st_mtime_ns == kept


def test_records_are_enough_where_all_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = chains()
    run_all([run], tmp_path, SERIAL)
    for each in with_rounds([run]):
        (run_folder(tmp_path, each) / "checkpoint.pt").unlink()
    capsys.readouterr()
    run_all([run], tmp_path, SERIAL)
    assert "1 of 1 runs are done already" in capsys.readouterr().out


@pytest.mark.parametrize("options", [SERIAL, TWO])
def test_where_a_round_fails_those_after_it_are_not_begun_and_others_are(
    options: EngineOptions, tmp_path: Path
) -> None:
    sound, lost = chains(2)
    folder = run_folder(tmp_path, rounds_before(lost)[1])
    folder.mkdir(parents=True)
    (folder / "metrics.csv").mkdir()  # which no run can write
    with pytest.raises(RunsFailed, match="3 of 8 runs failed"):
        run_all([sound, lost], tmp_path, options)
    assert (run_folder(tmp_path, sound) / "result.json").exists()
    told = json.loads((run_folder(tmp_path, lost) / "failure.json").read_text())["error"]
    assert told == f"the round before, {rounds_before(lost)[2].name}, failed"
    (folder / "metrics.csv").rmdir()
    run_all([sound, lost], tmp_path, options)
    assert not (run_folder(tmp_path, lost) / "failure.json").exists()


def test_an_order_hands_out_what_need_not_wait(tmp_path: Path) -> None:
    runs = with_rounds(chains(2))
    order = Order(sorted(runs, key=lambda run: run.prune_rate), tmp_path)
    first = [order.poll(), order.poll()]
    assert [run.prune_rate for run in first if run] == [0, 0]
    assert order.poll() is None
    taken: list[Run | None] = []
    waiting = threading.Thread(target=lambda: taken.append(order.take()))
    waiting.start()
    assert first[0]
    assert order.end(Outcome(first[0], {"status": "finished"})) == [Outcome(first[0], {"status": "finished"})]
    waiting.join(60)
    assert taken[0] and (taken[0].prune_rate, taken[0].seed) == (0.5, first[0].seed)
    # Somebody else does the other chain's first: all of its rounds are waited for.
    assert first[1]
    assert [outcome.error for outcome in order.end(Outcome(first[1]))] == [""] * 4
    assert order.poll() is None
    order.close()
    assert order.take() is None


def test_a_chain_whose_beginning_somebody_else_does_is_waited_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = chains()
    first = rounds_before(run)[0]
    real, asked = SerialEngine.do, [0]

    def do(self: SerialEngine, runs: list[Run]) -> Any:
        asked[0] += 1
        if asked[0] > 1:
            yield from real(self, runs)
            return
        order = Order(runs, tmp_path)
        begun = order.take()
        assert begun == first
        train(first, run_folder(tmp_path, first), callbacks=[])  # as by somebody else, who has just ended
        yield from order.end(Outcome(first))

    monkeypatch.setattr(SerialEngine, "do", do)
    run_all([run], tmp_path, SERIAL)
    assert asked[0] == 2
    assert records_of(tmp_path, [run]) == records_of(whole, [run])


def test_a_round_that_somebody_else_is_at_is_waited_for(whole: Path, tmp_path: Path) -> None:
    (run,) = chains()
    first, held = rounds_before(run)[0], threading.Event()

    def other() -> None:
        with claimed(run_folder(tmp_path, first)) as ours:
            assert ours
            held.set()
            time.sleep(1)
            train(first, run_folder(tmp_path, first), callbacks=[])

    somebody = threading.Thread(target=other)
    somebody.start()
    assert held.wait(60)
    run_all([run], tmp_path, SERIAL)
    somebody.join()
    assert records_of(tmp_path, [run]) == records_of(whole, [run])


def test_train_does_the_rounds_that_are_missing(whole: Path, tmp_path: Path) -> None:
    (run,) = chains()
    options = ["train", "--method", "bihalf", "--mask", "imp", "--imp-share", "0.5", "--prune-rate", "0.8"]
    options += ["--width", "0.1", "--epochs", "1", "--batch-size", "700", "--device", "cpu", "--threads", "1"]
    options += ["--out", str(tmp_path / "out" / "runs")]
    place = tmp_path / "printed"
    place.mkdir()
    status, out, err = Program(place, "mpt_bihalf", *options).ended()
    assert status == 0, err
    assert err.count("to do before the last") == 3
    assert records_of(tmp_path / "out", [run]) == records_of(whole, [run])
    status, again, err = Program(place, "mpt_bihalf", *options).ended()
    assert (status, err) == (0, "")
    assert again == out


def test_a_plan_of_a_chain_is_read_back(tmp_path: Path) -> None:
    runs = with_rounds(chains(imp_criterion="cutoff", rewind="1ep", imp_control="shuffled"))
    write_plan(tmp_path, runs, ["python"])
    assert [*find_plans(tmp_path)[0].runs] == runs


def test_a_chain_that_diverges_ends_the_sweep_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [*chains(), *chains(lr=1e30, batch_size=100)]
    run_all(runs, tmp_path, SERIAL)
    counts = survey(tmp_path).counts
    assert (counts["done"], counts["diverged"]) == (4, 4)
    capsys.readouterr()
    run_all(runs, tmp_path, SERIAL)
    assert "2 of 2 runs are done already" in capsys.readouterr().out


def test_a_rewind_that_no_run_comes_to_is_refused_before_any_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rewind 99999it: the run has 2 steps"):
        run_all(chains(rewind="99999it"), tmp_path / "out", SERIAL)
    assert not (tmp_path / "out").exists()

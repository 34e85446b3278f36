from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from tqdm import tqdm

from mpt_bihalf.experiments.prune_sweep import PruneSweep
from mpt_bihalf.files import read_json
from mpt_bihalf.sweep.run_all import _Bars
from mpt_bihalf.training import Callback, Epoch, Progress, ProgressBar, Run, callbacks, train
from mpt_bihalf.training.callbacks import Sender, received

SHORT: dict[str, Any] = {"width": 0.25, "epochs": 2, "batch_size": 350, "compute": "dense", "threads": 1}
EPOCH = Epoch({"epoch": 1, "test_top1": 93.75, "train_loss": 0.25}, 0.1, [], [])


class Notes(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def run_begins(self, run: Run, folder: Path, progress: Progress, model: nn.Module | None = None) -> None:
        self.told.append(("begins", run.method, folder.name, progress, model is not None))

    def step(self, run: Run, progress: Progress) -> None:
        self.told.append(("step", run.method, progress))

    def epoch(self, run: Run, progress: Progress, epoch: Epoch) -> None:
        self.told.append(("epoch", run.method, progress, epoch))

    def run_ends(self, run: Run, result: dict[str, Any]) -> None:
        self.told.append(("ends", run.method, result))

    def of(self, what: str, method: str) -> list[tuple[Any, ...]]:
        return [entry[2:] for entry in self.told if entry[:2] == (what, method)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_stands_at_the_step_under_way_beside_the_last_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "tqdm", partial(tqdm, file=Terminal()))
    bars, run = ProgressBar(), Run()
    bars.run_begins(run, Path(), Progress(3, 8))
    (bar,) = bars._bars.values()
    bars.step(run, Progress(5, 8))
    assert (bar.n, bar.postfix) == (5, None)
    bars.epoch(run, Progress(5, 8), EPOCH)
    assert (bar.n, bar.postfix) == (5, "test top-1=93.75%, loss=0.250")
    bars.run_ends(run, {})
    assert not bars._bars


def test_a_training_tells_of_its_begin_each_step_each_epoch_and_its_end(tmp_path: Path) -> None:
    notes = Notes()
    result = train(Run(method="mpt-bihalf", **SHORT), tmp_path / "run", callbacks=[notes])
    assert [entry[0] for entry in notes.told] == ["begins", *["step", "step", "step", "step", "epoch"] * 2, "ends"]
    assert notes.told[0] == ("begins", "mpt-bihalf", "run", Progress(0, 8), True)
    assert notes.of("step", "mpt-bihalf") == [(Progress(step, 8),) for step in range(1, 9)]
    (_, first), (progress, last) = notes.of("epoch", "mpt-bihalf")
    assert progress == Progress(8, 8) and last.figures["test_top1"] == result["test_top1"]
    assert (tmp_path / "run/metrics.csv").read_text().splitlines()[0].split(",") == list(first.figures)
    assert {row["layer"] for row in last.layers} == {"0", "2", "6", "8", "10"}
    assert last.learning_rate < first.learning_rate and last.trace == []
    assert notes.told[-1] == ("ends", "mpt-bihalf", result)


@pytest.mark.parametrize("engine", ["local", "serial"])
def test_a_sweep_tells_in_this_process_of_each_run_that_it_does(engine: str, tmp_path: Path) -> None:
    notes, out = Notes(), tmp_path / engine
    options: dict[str, Any] = {"methods": ["sign", "bihalf"], "trials": 1, "engine": engine, "out": str(out)}
    sweep = PruneSweep(**options, epochs=2, grid=["width=0.25", "batch_size=350", "compute=dense"])
    sweep.run(callbacks=[notes])
    for method in ("sign", "bihalf"):
        ((name, progress, has_model),) = notes.of("begins", method)
        assert progress == Progress(0, 8) and has_model == (engine == "serial")
        steps = [step for (step,) in notes.of("step", method)]
        assert steps == sorted(steps) and set(steps) <= {Progress(step, 8) for step in range(1, 9)}
        assert [progress for progress, _ in notes.of("epoch", method)] == [Progress(4, 8), Progress(8, 8)]
        ((result,),) = notes.of("ends", method)
        assert result == read_json(out / "runs" / name / "result.json")
        assert notes.of("epoch", method)[-1][1].figures["train_loss"] == result["train_loss"]
    again = Notes()
    sweep.run(callbacks=[again])
    assert not again.told


class Faulty(Callback):
    """Raises at the end of the first epoch of all."""

    def epoch(self, run: Run, progress: Progress, epoch: Epoch) -> None:
        raise LookupError("no such place")


@pytest.mark.parametrize("engine", ["local", "serial"])
def test_what_a_callback_raises_ends_a_sweep_and_is_no_fault_of_a_run(engine: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": ["sign", "bihalf"], "trials": 1, "engine": engine, "out": str(tmp_path)}
    sweep = PruneSweep(**options, epochs=2, jobs=1, grid=["width=0.25", "batch_size=350"])
    with pytest.raises(LookupError, match="no such place"):
        sweep.run(callbacks=[Faulty()])
    assert not list(tmp_path.glob("runs/*/failure.json"))
    assert len(list(tmp_path.glob("runs/*/result.json"))) <= 1
    sweep.run()
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2


def test_an_epoch_is_kept_before_it_is_told(tmp_path: Path) -> None:
    run = Run(method="sign", **SHORT)
    with pytest.raises(LookupError):
        train(run, tmp_path / "run", callbacks=[Faulty()])
    notes = Notes()
    result = train(run, tmp_path / "run", callbacks=[notes])
    assert notes.of("begins", "sign") == [("run", Progress(4, 8), True)]
    assert result == train(run, tmp_path / "whole", callbacks=[])


def test_a_run_without_a_folder_goes_where_the_command_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(method="sign", **SHORT).resolved()
    result = train(run, callbacks=[])
    assert read_json(tmp_path / "runs" / run.name / "result.json") == result


def test_output_folders_that_are_links_stay_links(tmp_path: Path) -> None:
    for name in ("sweep", "run"):
        (tmp_path / f"real-{name}").mkdir()
        (tmp_path / name).symlink_to(tmp_path / f"real-{name}")
    PruneSweep(methods=["sign"], epochs=1, trials=1, engine="serial", out=str(tmp_path / "sweep")).run()
    train(Run(method="sign", trace=2, **SHORT), tmp_path / "run", callbacks=[])
    assert (tmp_path / "sweep").is_symlink() and (tmp_path / "run").is_symlink()
    made = {path.name for path in (tmp_path / "real-sweep").iterdir()}
    assert {"runs", "sweeps", "results.csv"} <= made and any(name.endswith(".hparams") for name in made)
    assert (tmp_path / "real-run/result.json").exists() and (tmp_path / "real-run/trace").is_dir()


def test_a_failed_run_of_a_sweep_ends_with_why(tmp_path: Path) -> None:
    notes = Notes()
    sweep = PruneSweep(methods=["sign"], epochs=1, trials=1, engine="serial", out=str(tmp_path))
    (run,) = sweep.runs()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / run.name).write_text("in the way")
    with pytest.raises(Exception, match="1 of 1 runs failed"):
        sweep.run(callbacks=[notes])
    assert notes.told[0][2]["status"].startswith("failed: ")


def test_what_is_sent_is_received() -> None:
    sent: list[list[Any]] = []
    sender, run = Sender(sent.append), Run()
    sender.run_begins(run, Path(), Progress(0, 8))
    for step in range(1, 5):
        sender.step(run, Progress(step, 8))
    sender.epoch(run, Progress(4, 8), EPOCH)
    assert [received(message) for message in sent] == [
        (Progress(0, 8),),
        (Progress(1, 8),),
        (Progress(4, 8), EPOCH),
    ]


def test_bars_of_a_sweep_are_named_by_what_was_varied() -> None:
    bars = _Bars(Path(), 2, 0, ["method", "seed"])
    assert bars.name_of(Run(method="sign", seed=3)) == "sign seed=3"
    bars.close()

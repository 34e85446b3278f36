from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from mpt_bihalf.data import Dataset
from mpt_bihalf.training import Epoch, Progress, Run, events, record, train
from mpt_bihalf.training.events import METRICS, EventFile, TensorBoard, describe_runs
from mpt_bihalf.training.log import MEASURED, TRACED
from mpt_bihalf.training.names import WHERE

LAYERS = ["0", "2", "6", "8", "10"]
CurvesOf = Callable[[Path], dict[str, list[tuple[int, float]]]]
Trained = Callable[..., tuple[Run, Path]]


def hparams_page(folder: Path) -> tuple[api_pb2.Experiment, list[api_pb2.SessionGroup]]:
    """What the HParams plugin itself finds below a folder: the experiment and its sessions."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder)), logdir=str(folder)))
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=list(api_pb2.Status.values()),
        col_params=[],
        aggregation_type=api_pb2.AGGREGATION_AVG,
        start_index=0,
        slice_size=100,
    )
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    experiment = get_experiment.Handler(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    return experiment, list(groups)


@pytest.mark.parametrize("method", ["dense", "bihalf", "mpt-bihalf"])
def test_tensorboard_has_a_point_an_epoch_of_every_figure(method: str, trained: Trained, curves_of: CurvesOf) -> None:
    _, folder = trained(method=method, holdout=0.2, epochs=3)
    curves = curves_of(folder)
    binarized = [] if method == "dense" else LAYERS
    splits = ("train", "validation", "test")
    expected = {f"{measure}/{split}" for measure in ("loss", "top1", "top5") for split in splits} | {"learning_rate"}
    expected |= {f"{measure}/{layer}" for measure in MEASURED for layer in binarized}
    assert set(curves) == expected
    metrics = pd.read_csv(folder / "metrics.csv").set_index("epoch")
    for name, points in curves.items():
        assert [step for step, _ in points] == [1, 2, 3], name
        measure, _, split = name.partition("/")
        if split in splits:
            assert [value for _, value in points] == pytest.approx(metrics[f"{split}_{measure}"].tolist(), rel=1e-6)
    if binarized:
        layers = pd.read_csv(folder / "layers.csv", dtype={"layer": str}).set_index(["layer", "epoch"])
        for name in expected - {"learning_rate"}:
            measure, layer = name.split("/")
            if layer in LAYERS:
                assert [value for _, value in curves[name]] == pytest.approx(layers.loc[layer, measure].tolist())


def test_learning_rate_curve_ends_with_that_of_the_last_step(trained: Trained, curves_of: CurvesOf) -> None:
    _, folder = trained(epochs=2, lr=0.4)
    # Four steps an epoch: the last of each is the 3rd and the 7th of 8, counted from 0.
    expected = [0.2 * (1 + np.cos(np.pi * step / 8)) for step in (3, 7)]
    assert [value for _, value in curves_of(folder)["learning_rate"]] == pytest.approx(expected, rel=1e-6)


def test_a_resumed_curve_has_each_point_once(tmp_path: Path, curves_of: CurvesOf, make_run: Callable[..., Run]) -> None:
    for first, last in ((1, 3), (3, 4), (2, 5)):
        curves, run = TensorBoard(), make_run(epochs=10)
        curves.run_begins(run, tmp_path, Progress(10 * (first - 1), 100))
        for epoch in range(first, last + 1):
            trace = [{"step": 10 * epoch, "layer": "0", **dict.fromkeys(TRACED, first + epoch / 10)}]
            figures = {"epoch": epoch, "test_loss": first + epoch / 10}
            curves.epoch(run, Progress(10 * epoch, 100), Epoch(figures, 0.1, [], trace))
    # The last go began at epoch 2, so only epoch 1 is of the first.
    points = curves_of(tmp_path)["loss/test"]
    assert [step for step, _ in points] == [1, 2, 3, 4, 5]
    assert [value for _, value in points] == pytest.approx([1.1, 2.2, 2.3, 2.4, 2.5])
    assert curves_of(tmp_path / "trace")["cut_off/0"] == [(10 * step, value) for step, value in points]


@pytest.mark.parametrize("shift", [-3600, -1, 0, 1, 3600])
def test_what_is_written_later_counts_whatever_the_clock_and_the_machine_say(
    shift: int, tmp_path: Path, curves_of: CurvesOf, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for moment, machine, value in ((now, "b", 0.25), (now + shift, "a", 0.5), (now + shift / 2, "c", 0.75)):
        monkeypatch.setattr(time, "time", lambda: moment)
        monkeypatch.setattr(socket, "gethostname", lambda: machine)
        curves, run = TensorBoard(), make_run(epochs=1)
        curves.run_begins(run, tmp_path, Progress(0, 4))
        curves.epoch(run, Progress(4, 4), Epoch({"epoch": 1, "test_loss": value}, 0.1, [], []))
    assert curves_of(tmp_path)["loss/test"] == [(1, 0.75)]


def test_a_trace_that_is_a_link_is_not_followed(tmp_path: Path, small: Dataset, make_run: Callable[..., Run]) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    folder.mkdir()
    for name in ("trace", "metrics.csv", "checkpoint.pt", "result.json", "config.json", "trace.csv"):
        (folder / name).symlink_to(outside if name == "trace" else outside / name)
    assert train(make_run(trace=1, epochs=1), folder, small)["status"] == "finished"
    assert list(outside.iterdir()) == []
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_files_begun_at_the_same_time_have_names_of_their_own_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events.time, "time", lambda: 1.6e9)
    with ThreadPoolExecutor(4) as makers:
        made = list(makers.map(lambda _: EventFile(tmp_path, 0).path, range(20)))
    assert sorted(made) == sorted(tmp_path.iterdir())
    numbers = sorted(map(events.number_of, made))
    assert numbers[0] >= 1.6e9
    assert len(set(numbers)) == 20


def test_a_file_that_is_removed_stays_so_and_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim, file = tmp_path / "victim", EventFile(tmp_path, 0)
    victim.write_text("precious")
    file.path.unlink()
    file.flush()
    assert list(tmp_path.iterdir()) == [victim]
    file.path.symlink_to(victim)
    file.add(events.scalars({"a": 1.0}), 1)
    with pytest.raises(OSError, match=rf"'{file.path}'$"):
        file.flush()
    assert victim.read_text() == "precious"


def test_the_hparams_page_shows_each_run_with_its_fields_and_figures(trained: Trained, tmp_path: Path) -> None:
    made = [
        trained(f"runs/{rate}-{seed}", method="mpt-sign", prune_rate=rate, seed=seed, epochs=2, trace=2, skip=("0",))
        for rate in (0.25, 0.75)
        for seed in (0, 1)
    ]
    experiment, sessions = hparams_page(tmp_path / "runs")
    shown = [info.name for info in experiment.hparam_infos]
    assert set(shown) == set(asdict(made[0][0])) - {*WHERE}
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"prune_rate", "seed"}
    assert {"top1/test", "loss/test", "top1/train"} <= {info.name.tag for info in experiment.metric_infos}
    assert {session.name for session in sessions} == {folder.name for _, folder in made}
    for run, folder in made:
        (session,) = (session for session in sessions if session.name == folder.name)
        fields = {name: value.string_value or value.number_value for name, value in session.hparams.items()}
        assert (fields["prune_rate"], fields["seed"], fields["method"]) == (run.prune_rate, run.seed, "mpt-sign")
        assert fields["skip"] == "0"
        last = pd.read_csv(folder / "metrics.csv").iloc[-1]
        figures = {value.name.tag: value.value for value in session.metric_values}
        assert figures["top1/test"] == pytest.approx(last["test_top1"], rel=1e-6)
        assert figures["loss/train"] == pytest.approx(last["train_loss"], rel=1e-6)
        assert "top1/validation" not in figures
        assert session.sessions[0].status == api_pb2.STATUS_SUCCESS


def test_what_runs_were_varied_in_is_what_the_hparams_page_shows(trained: Trained, tmp_path: Path) -> None:
    for seed in (0, 1):
        trained(f"runs/{seed}", method="mpt-sign", seed=seed)
    for varied in (["lr", "seed"], ["seed", "skip"]):
        describe_runs(tmp_path, varied)
        experiment, sessions = hparams_page(tmp_path)
        assert {info.name for info in experiment.hparam_infos if info.differs} == {*varied}
        assert [info.name for info in experiment.hparam_infos][:2] == varied  # those beyond are hidden until asked
        assert {info.name.tag for info in experiment.metric_infos} == {*METRICS}
        assert {session.name for session in sessions} == {"runs/0", "runs/1"}
    assert len(list(tmp_path.glob("events*.hparams"))) == 1


def test_the_hparams_page_tells_what_diverged_and_what_is_not_done_yet_also_once_resumed(
    tmp_path: Path, small: Dataset, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def statuses() -> dict[str, int]:
        _, sessions = hparams_page(tmp_path)
        return {session.name: session.sessions[0].status for session in sessions}

    save = record.save_checkpoint

    def interrupt(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(record, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(make_run(), tmp_path / "cut", small)
    train(make_run(method="sign", lr=1e38, weight_decay=10.0), tmp_path / "diverged", small)
    assert statuses() == {"cut": api_pb2.STATUS_UNKNOWN, "diverged": api_pb2.STATUS_FAILURE}
    train(make_run(), tmp_path / "cut", small)
    assert statuses() == {"cut": api_pb2.STATUS_SUCCESS, "diverged": api_pb2.STATUS_FAILURE}
    _, (session, _) = hparams_page(tmp_path)
    assert session.name == "cut" and len(session.hparams) > 20
    assert {value.training_step for value in session.metric_values} == {2}

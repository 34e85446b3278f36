from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf.sweep import EngineOptions, read_records, run_all
from mpt_bihalf.sweep.engines import make_engine
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.sweep.work import Outcome, perform
from mpt_bihalf.training import Run
from tests.sweep.conftest import holder

ray = pytest.importorskip("ray")
ROOT = Path(__file__).parents[3]
Runs = Callable[..., list[Run]]
RAY = EngineOptions(engine="ray", address="auto")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that takes no runs, so that those of a test are done on nodes that it may kill."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick})
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def node(cluster: Any, connection: None) -> Iterator[Any]:
    found = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield found
    for worker in list(cluster.worker_nodes):
        cluster.remove_node(worker)


@pytest.fixture
def connection(
    cluster: Any, environment: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """From a folder with files that nobody may take for Python's modules, or others'."""
    here = tmp_path_factory.mktemp("here")
    for name in ("random", "tqdm", "scipy", "torch", "mpt_bihalf"):
        (here / f"{name}.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(here)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def long(run: Run) -> Run:
    """The run with some seconds of work in small steps."""
    return replace(run, epochs=8, batch_size=20)


def test_results_are_those_of_runs_in_this_process_one_that_fails_says_why_and_no_module_here_is_imported(
    tmp_path: Path, runs: Runs, node: Any
) -> None:
    sound = runs(methods=["sign", "mpt-bihalf"], trials=1)
    lost = replace(sound[0], data=f"folder:{tmp_path}/none")
    wanted = [sound[0], lost, sound[1]]
    with closing(make_engine(tmp_path / "ray", wanted, RAY).do(wanted)) as events:
        every = [*events]
    outcomes = {event.run: event for event in every if isinstance(event, Outcome)}
    assert "none" in outcomes[lost].error
    for run in sound:
        assert outcomes[run] == perform(run, tmp_path / "here")
        told = [event[1:] for event in every if not isinstance(event, Outcome) and event[0] == run]
        assert told[0][0].step == 0 and len(told[0]) == 1  # it begins
        epochs = [more[0].figures["epoch"] for _, *more in told if more]
        assert epochs == list(range(1, run.epochs + 1))
    assert read_records(tmp_path / "ray", sound) == read_records(tmp_path / "here", sound)


@pytest.mark.slow
def test_runs_move_from_a_node_that_is_killed_and_end_as_if_left_alone(
    tmp_path: Path, runs: Runs, cluster: Any, node: Any
) -> None:
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    wanted = [long(run) for run in runs(methods=["sign", "mpt-bihalf"])]

    def kill() -> None:
        while sum((run_folder(tmp_path, run) / "checkpoint.pt").exists() for run in wanted) < 2:
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    run_all(wanted, tmp_path, RAY)
    killer.join()
    assert any(len(list(run_folder(tmp_path, run).glob("events.*"))) > 1 for run in wanted), "no run was moved"
    run_all(wanted, tmp_path / "here", EngineOptions(engine="serial"))
    assert read_records(tmp_path, wanted) == read_records(tmp_path / "here", wanted)


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_goes_on(tmp_path: Path, runs: Runs, node: Any) -> None:
    import psutil

    (run,) = (long(run) for run in runs(methods=["sign"], trials=1))
    folder = run_folder(tmp_path, run)

    def kill() -> None:
        while not (folder / "checkpoint.pt").exists():
            time.sleep(0.01)
        psutil.Process((holder(folder) or {})["pid"]).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    run_all([run], tmp_path, RAY)
    killer.join()
    assert len(list(folder.glob("events.*"))) == 2
    run_all([run], tmp_path / "here", EngineOptions(engine="serial"))
    assert read_records(tmp_path, [run]) == read_records(tmp_path / "here", [run])


@pytest.mark.slow
def test_closing_ends_the_runs_with_their_steps_kept(tmp_path: Path, runs: Runs, node: Any) -> None:
    wanted = [replace(run, epochs=100, batch_size=20) for run in runs(methods=["sign"])]
    folder = run_folder(tmp_path, wanted[0])
    interrupted = threading.Event()

    def interrupt() -> None:
        while not (folder / "checkpoint.pt").exists():
            time.sleep(0.01)
        interrupted.set()
        import _thread

        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), closing(make_engine(tmp_path, wanted, RAY).do(wanted)) as events:
        for _ in events:
            pass
    thread.join()
    assert holder(folder) is None
    assert (folder / "checkpoint.pt").exists()
    assert not (folder / "failure.json").exists()


def test_a_run_that_no_node_has_room_for_is_told_at_once(tmp_path: Path, runs: Runs, node: Any) -> None:
    (run, *_) = runs(methods=["sign"])
    with pytest.raises(ValueError, match="no node of the Ray cluster has the 64 CPUs of a run"):
        make_engine(tmp_path, [replace(run, threads=64)], RAY)
    with pytest.raises(ValueError, match=r"no node .* 1 CPUs and the accelerator of a run"):
        make_engine(tmp_path, [replace(run, device="cuda")], RAY)


def test_without_ray_the_remedy_is_named(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'mpt_bihalf\[ray\]'"):
        make_engine(tmp_path, runs(), RAY)


@pytest.mark.slow
def test_the_default_sweep_with_a_node_killed_half_way_has_the_results_of_one_machine(
    tmp_path: Path, cluster: Any, node: Any
) -> None:
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    command = [sys.executable, str(ROOT / "experiments" / "prune_sweep.py"), "--rates", "0.1..0.9", "--out"]
    sweep = subprocess.Popen([*command, str(tmp_path / "ray"), "--engine", "ray", "--address", cluster.address])
    while len(list(tmp_path.glob("ray/runs/*/result.json"))) < 40:
        assert sweep.poll() is None
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    assert sweep.wait() == 0
    subprocess.run([*command, str(tmp_path / "here")], check=True)
    results = [(tmp_path / name / "results.csv").read_bytes() for name in ("ray", "here")]
    assert results[0] == results[1]
    assert results[0].count(b"finished") == 84


def test_a_plugin_is_there_on_the_nodes(tmp_path: Path, cluster: Any, node: Any) -> None:
    plugin = tmp_path / "parts.py"
    plugin.write_text("from mpt_bihalf import METHODS\nMETHODS['mine'] = METHODS['sign']\n")
    words = ["--plugin", plugin, "--methods", "mine", "--rates", "0.5", "--trials", "1", "--epochs", "1"]
    words += ["--engine", "ray", "--address", cluster.address, "--out", tmp_path / "out"]
    subprocess.run([sys.executable, ROOT / "experiments" / "prune_sweep.py", *map(str, words)], check=True)
    assert len(list(tmp_path.glob("out/runs/*-mine-*/result.json"))) == 1

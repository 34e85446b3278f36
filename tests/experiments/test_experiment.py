from __future__ import annotations

import hashlib
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpt_bihalf.experiments import experiment
from mpt_bihalf.experiments.method_comparison import MethodComparison
from mpt_bihalf.experiments.prune_sweep import PruneSweep
from mpt_bihalf.training import config

ROOT = Path(__file__).parents[2]


def only(**options: Any) -> Any:
    """The one run of a sweep with these options."""
    (run,) = PruneSweep(methods=["sign"], models=["conv2"], trials=1, **options).runs()
    return run


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        ({"threads": 0}, 8),
        ({"threads": 0, "jobs": 2}, 4),
        ({"threads": 0, "jobs": 3}, 2),
        ({"threads": 0, "jobs": 20}, 1),
        ({"threads": 5, "jobs": 20}, 5),
        ({"recipe": "paper"}, 8),
        ({"recipe": "paper", "jobs": 4}, 2),
        ({"recipe": "paper", "engine": "ray"}, 1),
        ({"recipe": "quick", "jobs": 4}, 1),
    ],
)
def test_cores_are_divided_among_the_jobs(
    options: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "usable_cores", lambda: 8)
    assert only(device="cpu", **options).threads == threads


def test_the_augmentation_is_the_recipes_unless_given() -> None:
    assert only(data="cifar10") == only(data="cifar10", augment="auto", flip="on", crop_padding="on")
    assert only(data="cifar10", augment="none").augment == "none"
    assert only(data="cifar10", flip="off").flip == only(data="cifar10", crop_padding="off").crop_padding == "off"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_a_device_need_not_be_where_the_command_is_typed() -> None:
    assert only(engine="ray", device="cuda").device == "cuda"
    with pytest.raises(ValueError, match="'cuda' is not available here"):
        only(device="cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "slurm"}, "unknown engine 'slurm'; known: local, ray, serial"),
        ({"jobs": 0}, "jobs must lie in 1 to 1024, not 0"),
        ({"runs_per_device": -1}, "runs-per-device must lie in 1 to 1024, not -1"),
        ({"address": "auto"}, "give --engine ray"),
    ],
)
def test_an_engine_that_cannot_be_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        only(**options)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"rates": "0..0.9:0.0001", "trials": 12, "methods": ["mpt-sign", "bihalf"]}, 12 * 9_001 + 12),
        (
            {"grid": [f"lr={','.join(map(str, range(1, 1001)))}", f"momentum={','.join(['0'] * 1000)}"]},
            81 * 10**6 + 3 * 10**6,
        ),
        ({"models": ["conv2"] * 400, "trials": 10_000, "methods": ["dense"], "rates": "0.5"}, 4 * 10**6),
    ],
)
def test_a_grid_of_too_many_runs_is_refused_with_their_count_before_any_is_made(
    options: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "Run", pytest.fail)
    with pytest.raises(ValueError, match=f"^the grid has {count:,} runs, and 100,000 are the most"):
        PruneSweep(**options).runs()


def test_a_tuning_of_too_many_runs_is_refused_likewise() -> None:
    options = MethodComparison(models=["conv2"], methods=["sign"], tune_lrs=[0.1] * 100, tune_trials=1_000)
    with pytest.raises(ValueError, match="the grid has 200,000 runs"):
        options.tuning_runs()


# The hashes of all runs of the recipes, quick and paper, by their SHA-256: what is done under them is found again. They
# are of before scales moved to outputs and layers computed sparsely: with scale_on="weight" and compute="dense".
HASHES = {
    "activation_entropy": ("488b58c241905468", "edf25cb343ff6f25"),
    "architectures": ("302b603f310758d1", "32c146563dc2bd1e"),
    "bit_flips": ("7e604ad2e15a937f", "c0553c7a9643c669"),
    "bit_ratio": ("6dbf33593824da9d", "8b99379c8dfe4649"),
    "decay": ("9a6bc025c01bb747", "247666e602aa7d56"),
    "imagenet": ("2d97eb06d83e22a6", "a924a31dea3a7fb8"),
    "mask_controls": ("0b87b4060fcff248", "e36518dc9aa8c86f"),
    "method_comparison": ("5316a2f639ba3e6b", "a772de28d3556330"),
    "prune_sweep": ("a07713c163e4880a", "4bdd9edbbb8a0a3d"),
    "repeated_trainings": ("51eab821787a2539", "30d394d6eece3d0c"),
    "weight_entropy": ("1e71f29ffb9ba002", "485287d6690ed8d1"),
}


@pytest.mark.parametrize("name", HASHES)
def test_the_runs_of_the_recipes_keep_their_hashes(name: str, experiment_of: Callable[[str], Any]) -> None:
    found = []
    for recipe in ("quick", "paper"):
        runs = experiment_of(name)(recipe=recipe, device="cpu", threads=1).runs()
        # The dense runs of the sweep came later.
        runs = [run for run in runs if run.method != "dense" or name != "prune_sweep"]
        hashes = "\n".join(replace(run, scale_on="weight", compute="dense").hash for run in runs)
        found.append(hashlib.sha256(hashes.encode()).hexdigest()[:16])
    assert tuple(found) == HASHES[name]


@pytest.mark.parametrize("name", HASHES)
def test_the_scale_of_binary_networks_is_on_the_output(name: str, experiment_of: Callable[[str], Any]) -> None:
    for recipe in ("quick", "paper"):
        for run in experiment_of(name)(recipe=recipe, device="cpu", threads=1).runs():
            binary = run.activations != "real" and run.method != "dense"
            assert run.scale_on == ("output" if binary else "weight")


EVERY = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))


def test_each_experiment_is_one_file_and_a_door_and_has_its_tests(experiment_of: Callable[[str], Any]) -> None:
    files = {path.stem for path in (ROOT / "mpt_bihalf" / "experiments").glob("*.py")}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "experiments").glob("*.py")}
    assert files - set(EVERY) == {"__init__", "experiment", "grid", "recipe", "results", "traced"}
    assert set(EVERY) <= files & tests
    for name in EVERY:
        found = experiment_of(name)
        assert found.claim and found.about and "\n" not in found.claim + found.about


@pytest.mark.parametrize("name", EVERY)
def test_a_door_and_the_module_as_a_command_tell_the_same_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told, module = [], f"mpt_bihalf.experiments.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)  # runpy warns of one that is there already
    for run in (
        lambda: runpy.run_module(module, run_name="__main__", alter_sys=True),
        lambda: runpy.run_path(str(ROOT / "experiments" / f"{name}.py"), run_name="__main__"),
    ):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
        with pytest.raises(SystemExit) as end:
            run()
        assert not end.value.code
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and "--out" in told[0]


def test_an_experiment_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mpt_bihalf.experiments.search_space", "--step", "0.5", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\nmeasured: " in ended.stdout and "\npaper: " in ended.stdout
    assert (tmp_path / "search_space.png").exists()

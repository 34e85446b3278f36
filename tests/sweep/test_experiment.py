from __future__ import annotations

from typing import Any

import pytest
import torch

from mpt_bihalf.sweep import PruneSweep, experiment
from mpt_bihalf.sweep.method_comparison import MethodComparison
from mpt_bihalf.training import config


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
        ({"grid": [f"lr={','.join(map(str, range(1, 1001)))}", f"momentum={','.join(['0'] * 1000)}"]}, 81 * 10**6),
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

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpt_bihalf.sweep import PruneSweep
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

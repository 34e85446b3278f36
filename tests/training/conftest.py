from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf.data import Dataset, ImageSet, load_dataset
from mpt_bihalf.signals import Stopped
from mpt_bihalf.training import Run, train
from tests.told import Each, Told


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def small(digits: Dataset) -> Dataset:
    """300 training and 123 test images of the digits."""

    def first(images: ImageSet, count: int) -> ImageSet:
        return ImageSet(images.images[:count], images.labels[:count])

    return replace(digits, train=first(digits.train, 300), test=first(digits.test, 123))


@pytest.fixture
def other(small: Dataset) -> Dataset:
    """The small data with one test image of another class."""
    assert isinstance(small.test, ImageSet)
    labels = small.test.labels.clone()
    labels[7] = (labels[7] + 1) % 10
    return replace(small, test=ImageSet(small.test.images, labels))


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """A short run of a narrow network on one thread: four steps an epoch on the small data."""

    def make(**fields: object) -> Run:
        settings = {"width": 0.25, "batch_size": 64, "epochs": 2, "threads": 1, "device": "cpu", "compute": "dense"}
        return Run(**settings | fields)  # type: ignore[arg-type]

    return make


@pytest.fixture
def trained(tmp_path: Path, small: Dataset, make_run: Callable[..., Run]) -> Callable[..., tuple[Run, Path]]:
    """Train a short run; its configuration and its folder."""

    def do(place: str = "run", **fields: object) -> tuple[Run, Path]:
        run = make_run(**fields)
        train(run, tmp_path / place, small)
        return run, tmp_path / place

    return do


@pytest.fixture
def stopped(tmp_path: Path, small: Dataset, make_run: Callable[..., Run]) -> Callable[..., tuple[Run, Path]]:
    """Train a short run that a signal ends after step `at`, counted from 1; its configuration and its folder."""

    def do(at: int, place: str = "stopped", signum: int = signal.SIGTERM, **fields: object) -> tuple[Run, Path]:
        run = make_run(**fields)

        def tell(progress: Told) -> None:
            if progress.step == at and progress.figures is None:
                os.kill(os.getpid(), signum)

        with pytest.raises(Stopped) as end:
            train(run, tmp_path / place, small, [Each(tell)])
        assert end.value.signum == signum
        return run, tmp_path / place

    return do


@pytest.fixture
def curves_of() -> Callable[[Path], dict[str, list[tuple[int, float]]]]:
    """TensorBoard's points in a folder: (step, value) by tag."""

    def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read


@pytest.fixture
def weights_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    """The weights in the checkpoint of a folder."""
    return lambda folder: torch.load(folder / "checkpoint.pt", weights_only=True)["model"]

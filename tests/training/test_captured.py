"""A captured step trains as the step itself: batches, rates and what changes by epochs reach the graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf.training import Run, train
from mpt_bihalf.training import captured as module
from mpt_bihalf.training.build import build_network, build_optimizer, check_computes
from mpt_bihalf.training.captured import WARM_UP, CapturedStep
from mpt_bihalf.training.step import NO_SCALER, train_step
from tests.told import Each

FIELDS: dict[str, Any] = {
    "data": "digits", "epochs": 3, "batch_size": 128, "lr": 0.125, "schedule": "constant", "device": "cpu",
    "threads": 1, "compute": "dense", "width": 0.25,
}  # fmt: skip


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """In the place of a device that captures: what a graph reads and writes stays where it was; for each its results.

    As there, capturing does nothing by itself, and numbers that are no tensors are those of the capture.
    """
    results: list[list[Tensor]] = []

    def capture(device: torch.device, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        there, mine = torch.zeros(3), []
        results.append(mine)

        def repeat() -> None:
            there.copy_(work())
            mine.append(there.clone())

        return there, repeat

    monkeypatch.setattr(module, "capture", capture)
    monkeypatch.setattr(module, "aside", lambda device: nullcontext())
    monkeypatch.setattr("mpt_bihalf.training.build.check_captures", lambda device: None)
    return results


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "mpt-bihalf"},
        {"method": "mpt-sign", "prune_rate": 0.9, "prune_epochs": 2},
        {"method": "irnet", "label_smoothing": 0.25},
        {"method": "bop", "bop_gamma": 1e-3, "bop_tau": 1e-5},
        {"method": "bihalf", "optimizer": "adam", "lr": 2**-7},
    ],
    ids=lambda fields: fields["method"],
)
def test_a_run_by_graphs_is_the_run_without_them(
    fields: dict[str, Any], graphs: list[list[Tensor]], tmp_path: Path
) -> None:
    plain = Run(**(FIELDS | fields))
    by_graphs = Run(**(FIELDS | fields), graph=True)
    assert train(plain, tmp_path / "plain") == train(by_graphs, tmp_path / "graphs")
    for name in ("metrics.csv", "layers.csv"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "graphs" / name).read_bytes()
    steps = 1437 // 128
    assert [len(each) for each in graphs] == [steps - WARM_UP] * 3  # a graph an epoch


def test_a_run_by_graphs_goes_on_from_its_checkpoint(graphs: list[list[Tensor]], tmp_path: Path) -> None:
    run = Run(**FIELDS, graph=True)
    whole = train(run, tmp_path / "whole")

    def stop(progress: Any) -> None:
        if progress.step == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "cut", callbacks=[Each(stop)])
    assert train(run, tmp_path / "cut") == whole


def test_the_learning_rate_of_each_step_reaches_the_graph(graphs: list[list[Tensor]], tmp_path: Path) -> None:
    """Cosine, by a float32 on the device: as without graphs but for its rounding."""
    fields = FIELDS | {"schedule": "cosine", "method": "bihalf"}
    plain = train(Run(**fields), tmp_path / "plain")
    by_graphs = train(Run(**fields, graph=True), tmp_path / "graphs")
    assert by_graphs["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)


def test_what_the_caller_does_with_a_batch_afterwards_does_not_matter(graphs: list[list[Tensor]]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    step, x, y = CapturedStep(), torch.randn(4, 1, 8, 8), torch.arange(4)
    for _ in range(WARM_UP):
        step(model, None, x, y, "fp32", NO_SCALER)
    for _ in range(3):
        fresh = torch.randn(4, 1, 8, 8)
        expected = train_step(model, None, fresh, y)
        found = step(model, None, fresh, y, "fp32", NO_SCALER)
        fresh.zero_()
        assert torch.equal(found, expected)


def test_an_accelerator_is_asked_for(tmp_path: Path) -> None:
    run = Run(**FIELDS, graph=True)
    for refuse in (run.resolved, lambda: check_computes(run), lambda: train(run, tmp_path / "run")):
        with pytest.raises(ValueError, match=r"graph is for an accelerator that captures graphs \(CUDA\), not cpu"):
            refuse()
    assert not (tmp_path / "run").exists()
    for others in ({"compile": True}, {"processes": 2}):
        with pytest.raises(ValueError, match="graph is of one process and not compiled"):
            Run(**(FIELDS | others), graph=True)


def test_optimizers_can_be_captured() -> None:
    """Adam counts its steps where a graph can."""
    run = Run(**FIELDS, optimizer="adam", graph=True)
    optimizer = build_optimizer_of(run)
    assert optimizer.param_groups[0]["capturable"]
    assert not build_optimizer_of(Run(**FIELDS, optimizer="adam")).param_groups[0]["capturable"]


def build_optimizer_of(run: Run) -> torch.optim.Optimizer:
    optimizer = build_optimizer(run, build_network(run, 10, 1, 8))
    assert optimizer
    return optimizer

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpt_bihalf import binary_layers, binary_weights
from mpt_bihalf.training import Run, loop
from mpt_bihalf.training.build import build_network, build_optimizer
from mpt_bihalf.training.schedule import learning_rate, prune_rate, start_epoch
from tests.reference import one_line_error

Trained = Callable[..., tuple[Run, Path]]


def test_the_pruning_rate_rises_by_a_cubic_as_in_the_mpt_authors_later_code() -> None:
    run = Run(prune_rate=0.9, prune_epochs=4, epochs=10)
    # 1 - kept, with kept = k + (0.5 - k) (1 - epoch / 4)^3 and k = 0.1
    expected = [0.5, 1 - (0.1 + 0.4 * 0.75**3), 1 - (0.1 + 0.4 * 0.5**3), 1 - (0.1 + 0.4 * 0.25**3), 0.9, 0.9]
    assert [prune_rate(run, epoch) for epoch in range(6)] == pytest.approx(expected)
    assert prune_rate(run, 4) == 0.9  # as it was written, not something next to it
    assert [prune_rate(Run(prune_rate=0.9), epoch) for epoch in (0, 3)] == [0.9, 0.9]


def test_a_linear_learning_rate_falls_by_the_same_at_each_step_to_0_after_the_last() -> None:
    run = Run(lr=0.5, schedule="linear", epochs=2)
    assert [learning_rate(run, step // 2, step, 4) for step in range(4)] == [0.5, 0.375, 0.25, 0.125]


@pytest.mark.parametrize(
    ("schedule", "then"),
    [
        ("cosine", [0.5, 0.4267767, 0.25, 0.0732233]),
        ("linear", [0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5] * 4),
        ("step", [0.5, 0.5, 0.05, 0.05]),
    ],
)
def test_a_warm_up_rises_by_the_same_at_each_step_and_the_schedule_begins_behind(
    schedule: Any, then: list[float]
) -> None:
    milestones = (2,) if schedule == "step" else ()
    run = Run(lr=0.5, schedule=schedule, epochs=3, warmup=1, milestones=milestones)
    found = [learning_rate(run, step // 2, step, 6) for step in range(6)]
    assert found == pytest.approx([0.25, 0.5, *then])


def test_nesterovs_momentum_is_that_of_torch(trained: Trained) -> None:
    run, folder = trained("nesterov", nesterov=True, epochs=1, lr=0.05)
    _, plain = trained("plain", epochs=1, lr=0.05)
    optimizer = build_optimizer(run, build_network(run, 10, 1, 8))
    assert optimizer and all(group["nesterov"] for group in optimizer.param_groups)
    assert (folder / "metrics.csv").read_bytes() != (plain / "metrics.csv").read_bytes()
    for fields in ({"momentum": 0.0}, {"optimizer": "adam"}):
        with one_line_error("nesterov is for sgd with momentum"):
            Run(nesterov=True, **fields)


@pytest.mark.parametrize("settings", [{"scope": "global"}, {"scope": "layer"}, {"method": "mpt-balanced"}])
def test_masks_keep_what_the_rate_of_their_epoch_says(settings: dict[str, Any]) -> None:
    run = Run(prune_rate=0.9, prune_epochs=2, epochs=4, **settings)
    model = build_network(run, 10, 1, 8)
    for epoch, rate in [(0, 0.5), (1, 0.85), (2, 0.9)]:
        start_epoch(model, run, epoch)
        signs = torch.cat([binary.flatten() for binary in binary_weights(model).values()])
        assert (signs == 0).double().mean().item() == pytest.approx(rate, abs=0.002)


def test_a_training_prunes_more_from_epoch_to_epoch(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = loop.train_step

    def note(model: nn.Module, *others: Any) -> Tensor:
        rates.append({part.prune_rate for _, part, _ in binary_layers(model)})
        return step(model, *others)

    monkeypatch.setattr(loop, "train_step", note)
    trained(method="mpt-sign", scope="global", prune_rate=0.9, prune_epochs=2, epochs=3)
    assert rates == [{0.5}] * 4 + [{0.85}] * 4 + [{0.9}] * 4


@pytest.mark.parametrize("at", [3, 4, 6, 8, 9])
def test_a_run_stopped_while_its_rate_rises_ends_as_one_left_alone(
    at: int, trained: Trained, stopped: Callable[..., tuple[Run, Path]]
) -> None:
    settings: dict[str, Any] = {"scope": "global", "prune_rate": 0.9, "prune_epochs": 2, "epochs": 3, "trace": 1}
    _, whole = trained("whole", **settings)
    _, cut = stopped(at, "cut", **settings)
    trained("cut", **settings)
    for name in ("result.json", "metrics.csv", "layers.csv", "trace.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_chance_within_a_step_is_the_same_after_a_resume(
    trained: Trained, stopped: Callable[..., tuple[Run, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.train_step
    drawn: list[float] = []

    def note(model: nn.Module, *others: Any) -> Tensor:
        drawn.append(torch.rand(()).item())
        return step(model, *others)

    monkeypatch.setattr(loop, "train_step", note)
    trained("whole", epochs=2)
    whole = list(drawn)
    drawn.clear()
    stopped(3, "cut", epochs=2)
    torch.manual_seed(5)
    trained("cut", epochs=2)
    assert drawn == whole and len(set(whole)) == 8
    drawn.clear()
    trained("other", epochs=2, seed=1)
    assert not set(drawn) & set(whole)

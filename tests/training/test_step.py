from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import log
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD

from mpt_bihalf import METHODS
from mpt_bihalf.data import Dataset, evaluation_batches
from mpt_bihalf.distributed import Team
from mpt_bihalf.training import Run, train_step
from mpt_bihalf.training.build import build_model, build_optimizer
from mpt_bihalf.training.checkpoint import State
from mpt_bihalf.training.step import evaluate


class Constant(nn.Module):
    """Gives every class the same logit."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return self.bias * torch.ones(len(x), self.classes)


class Echo(nn.Module):
    """Takes logits for images, and gives them back."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_evaluation_does_not_depend_on_the_batches(small: Dataset, make_run: Callable[..., Run]) -> None:
    run = make_run()
    model = build_model(run, small)
    figures = [evaluate(model, evaluation_batches(small.test, small, size), "test")[0] for size in (123, 10)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-5)


def test_a_dead_network_does_not_count_as_right(small: Dataset, make_run: Callable[..., Run]) -> None:
    model = Constant(10)
    figures, constant = evaluate(model, evaluation_batches(small.test, small, 50), "test")
    assert constant
    shares = np.sort(np.bincount(small.test.labels.numpy(), minlength=10) / 1.23)[::-1]
    assert figures["test_top1"] <= shares[0] + 1e-6
    assert figures["test_top5"] <= shares[:5].sum() + 1e-6
    assert figures["test_loss"] == pytest.approx(log(10))
    y = torch.arange(100) % 10
    _, top1, top5 = train_step(model, SGD(model.parameters(), 0.0), torch.zeros(100, 1, 8, 8), y).tolist()
    assert (top1, top5) == (10, 50)


def test_smoothed_labels_spread_their_share_evenly_over_all_classes() -> None:
    head = nn.Linear(2, 2, bias=False)
    x, y = torch.eye(2), torch.tensor([0, 0])
    for smoothing, label in ((0.0, (1.0, 0.0)), (0.1, (0.95, 0.05)), (0.5, (0.75, 0.25))):
        with torch.no_grad():
            head.weight.copy_(torch.tensor([[log(3), 0.0], [0.0, 0.0]]))  # probabilities 3/4, 1/4 and 1/2, 1/2
        loss, top1, _ = train_step(head, SGD(head.parameters(), 1.0), x, y, label_smoothing=smoothing).tolist()
        assert loss == pytest.approx(-label[0] * log(3 / 4) - label[1] * log(1 / 4) + log(2), rel=1e-6)
        assert top1 >= 1
        # Of each logit the mean over the two images of probability - label.
        expected = torch.tensor([[0.75 - label[0], 0.5 - label[0]], [0.25 - label[1], 0.5 - label[1]]]) / 2
        assert head.weight.grad is not None
        torch.testing.assert_close(head.weight.grad, expected)


NEARLY = torch.tensor([[1.0, -2.0, 0.0]] * 7)
NEARLY[6, 1] = torch.nextafter(NEARLY[6, 1], torch.tensor(0.0))
LOGITS = {
    "equal": (torch.tensor([[1.0, -2.0, 0.0]] * 7), True),
    "different by a bit": (NEARLY, False),
    "equal within each image": (torch.arange(7.0)[:, None].expand(7, 3), False),
    "of a single image": (torch.tensor([[1.0, -2.0, 0.0]]), False),
    "NaN": (torch.full((7, 3), torch.nan), False),
}


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize(("logits", "constant"), LOGITS.values(), ids=LOGITS)
def test_equal_logits_of_several_images_are_noticed(logits: Tensor, constant: bool, batch: int) -> None:
    labels = torch.zeros(len(logits), dtype=torch.int64)
    batches = zip(logits.split(batch), labels.split(batch), strict=True)
    assert evaluate(Echo(), batches, "test")[1] is constant


class Side(Team):
    """One of two processes, a thread each, that have `held` and `meet` in common."""

    processes = 2

    def __init__(self, rank: int, held: list[Tensor], meet: Barrier) -> None:
        self.rank, self.held, self.meet = rank, held, meet

    def gather(self, values: Tensor) -> Tensor:
        self.held[self.rank] = values
        self.meet.wait()
        gathered = torch.stack(self.held)
        self.meet.wait()
        return gathered

    def sum(self, values: Tensor) -> Tensor:
        return self.gather(values).sum(0)


@pytest.mark.parametrize(
    ("first", "second", "constant"),
    [([1.0] * 4, [1.0] * 3, True), ([1.0] * 4, [2.0] * 3, False), ([1.0] * 4, [], True), ([1.0], [], False)],
)
def test_logits_are_compared_over_all_processes_even_those_without_images(
    first: list[float], second: list[float], constant: bool
) -> None:
    held, meet = [torch.empty(0)] * 2, Barrier(2, timeout=30)

    def look(rank: int, values: list[float]) -> tuple[dict[str, float], bool]:
        batches = [(torch.tensor([[value, 0.5]]), torch.tensor([1])) for value in values]
        return evaluate(Echo(), batches, "test", team=Side(rank, held, meet))

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(look, (0, 1), (first, second))
    assert one == other
    assert one[1] is constant


@pytest.mark.parametrize("method", METHODS)
def test_a_step_runs_on_the_meta_device(method: str, small: Dataset, make_run: Callable[..., Run]) -> None:
    with torch.device("meta"):
        model = build_model(make_run(method=method), small)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = SGD(trained, 0.1, momentum=0.9, weight_decay=1e-4, fused=False)
    x, y = torch.empty(8, 1, 8, 8, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    totals = train_step(model, optimizer, x, y)
    assert totals.device.type == "meta"
    assert totals.shape == (3,)
    assert all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_mixed_precision_never_waits_for_a_device(
    method: str, precision: str, small: Dataset, make_run: Callable[..., Run]
) -> None:
    run = make_run(method=method, precision=precision, activations="binary")
    with torch.device("meta"):
        model = build_model(run, small)
    optimizer = build_optimizer(run, model)
    scaler = State.begin(run, model, optimizer, 4).scaler
    x, y = torch.empty(8, 1, 8, 8, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    for _ in range(2):
        assert train_step(model, optimizer, x, y, precision, scaler).is_meta
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"optimizer": "adam"}, marks=pytest.mark.slow),
        pytest.param({"method": "bop", "bop_tau": 0.0, "bop_gamma": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_steps_whose_gradients_overflow_are_skipped_as_if_they_had_not_been(
    options: dict[str, Any], small: Dataset, make_run: Callable[..., Run]
) -> None:
    run = make_run(**{"method": "bihalf", "precision": "fp16", "model": "conv4", **options})
    ends = []
    for scale in (2.0**60, 2.0**12):
        model = build_model(run, small)
        optimizer = build_optimizer(run, model)
        scaler = GradScaler("cpu", init_scale=scale)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        x, y = next(evaluation_batches(small.test, small, 32))
        skipped = 0
        for _ in range(100):
            train_step(model, optimizer, x, y, "fp16", scaler)
            if any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()):
                break
            skipped += 1
        assert (skipped > 20) is (scale > 2**50) and scaler.get_scale() == scale / 2**skipped
        for _ in range(2):
            train_step(model, optimizer, x, y, "fp16", GradScaler("cpu", init_scale=2.0**12))
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        # Rounded at other places by another scale, and no more.
        close = torch.isclose(value, ends[1][name], rtol=1e-2, atol=1e-4).float().mean()
        assert close > 0.99, name

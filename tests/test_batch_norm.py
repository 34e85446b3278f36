from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mpt_bihalf.batch_norm import SyncBatchNorm, synchronise_batch_norm


def in_two(place: Path, work: Callable[[int], Any]) -> list[Any]:
    """What `work(rank)` gives in each of two processes that know each other."""

    def child(rank: int) -> None:
        dist.init_process_group("gloo", store=dist.FileStore(str(place / "store"), 2), rank=rank, world_size=2)
        torch.save(work(rank), place / f"{rank}.pt")
        dist.destroy_process_group()

    children = [multiprocessing.get_context("fork").Process(target=child, args=[rank]) for rank in (0, 1)]
    for one in children:
        one.start()
    for one in children:
        one.join(60)
        one.kill()
    return [torch.load(place / f"{rank}.pt") for rank in (0, 1)]


def network(dtype: torch.dtype, **norm: Any) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **norm), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(6, **norm)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand(parameter.shape, dtype=dtype))
    return model


def after_steps(model: nn.Module, x: Tensor, share: float = 1.0) -> dict[str, Any]:
    """Outputs, gradients and state after two batches; gradients are of the mean over the whole batch."""
    outs = [model(part) for part in (x, 2 * x + 1)]
    (share * sum((out.square() * torch.arange(6)).mean() for out in outs)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"out": outs[1].detach(), "gradients": gradients, "state": dict(model.state_dict())}


@pytest.mark.parametrize("norm", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str)
def test_two_halves_of_a_batch_are_normalised_as_the_whole(norm: dict[str, Any], tmp_path: Path) -> None:
    x = torch.randn(10, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x.to(memory_format=torch.channels_last)
    whole = after_steps(network(torch.float64, **norm), x)

    def half(rank: int) -> dict[str, Any]:
        model = network(torch.float64, **norm)
        synchronise_batch_norm(model)
        return after_steps(model, x.chunk(2)[rank], share=0.5)

    first, second = in_two(tmp_path, half)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([first["out"], second["out"]]), whole["out"], **close)
    assert first["state"].keys() == whole["state"].keys()
    for name, value in whole["state"].items():
        torch.testing.assert_close(first["state"][name], value, **close)
        torch.testing.assert_close(second["state"][name], value, **close)
    for name, gradient in whole["gradients"].items():
        torch.testing.assert_close(first["gradients"][name] + second["gradients"][name], gradient, **close)


def test_half_precision_is_summed_in_float32(tmp_path: Path) -> None:
    x = 300 + torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))

    def half(rank: int) -> dict[str, Tensor]:
        model = nn.Sequential(nn.BatchNorm1d(2))
        synchronise_batch_norm(model)
        with torch.autocast("cpu", torch.float16):
            out = model(x.chunk(2)[rank].half())
        return {"out": out, "mean": model[0].running_mean, "var": model[0].running_var}

    first, _ = in_two(tmp_path, half)
    assert first["out"].dtype == torch.float16
    rounded = x.half().double()
    torch.testing.assert_close(first["mean"].double(), 0.1 * rounded.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(first["var"].double(), 0.9 + 0.1 * rounded.var(0), rtol=1e-5, atol=0)


def test_alone_and_in_evaluation_it_is_torchs_batch_norm() -> None:
    x = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    own, torchs = network(torch.float32), network(torch.float32)
    synchronise_batch_norm(own)
    assert [type(own[i]) for i in (1, 5)] == [SyncBatchNorm] * 2
    for training in (True, False):
        own.train(training)
        torchs.train(training)
        assert torch.equal(own(x), torchs(x))
    with pytest.raises(ValueError, match=r"batch norm takes \[N, C, ...\], not \(3,\)"):
        own[1](torch.zeros(3))

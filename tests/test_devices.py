from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpt_bihalf.devices import device_name, fused_optimizers, host_reads_free, pick_device, reproducible_kernels


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.usefixtures("no_accelerator")
def test_auto_is_the_cpu_where_there_is_no_accelerator() -> None:
    assert pick_device("auto") == torch.device("cpu")


def test_auto_is_the_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    assert pick_device("auto") == torch.device("xpu")


def test_a_device_by_its_name() -> None:
    assert pick_device("cpu") == torch.device("cpu")


def test_a_processor_is_named_as_it_is_sold(monkeypatch: pytest.MonkeyPatch) -> None:
    core = "processor\t: 0\nmodel name\t: Fast: 9 (R) @ 3 GHz\nflags\t\t:\n\n"
    monkeypatch.setattr(Path, "read_text", lambda path: 2 * core)
    assert device_name(torch.device("cpu")) == "Fast: 9 (R) @ 3 GHz"


def test_a_processor_has_a_name_also_where_the_system_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert device_name(torch.device("cpu"))


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize("name", ["", "gpu", "cpu:x", "cuda:99", "mps", "CPU", "hpu", "privateuseone", "meta"])
def test_a_device_that_cannot_train_here_is_told_those_that_can(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not available here; use one of: auto, cpu$") as error:
        pick_device(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_only_host_memory_is_read_without_waiting(kind: str) -> None:
    assert host_reads_free(torch.empty(1, device=kind)) == (kind == "cpu")


def test_a_fused_optimizer_is_promised_only_where_torch_takes_one() -> None:
    for kind in ("cpu", "meta"):
        weight = torch.nn.Parameter(torch.zeros(2, device=kind))
        weight.grad = torch.ones(2, device=kind)
        try:
            torch.optim.SGD([weight], 0.1, fused=True).step()
            works = True
        except RuntimeError:
            works = False
        assert works or not fused_optimizers(torch.device(kind))
    assert fused_optimizers(torch.device("cpu"))


def test_kernels_are_chosen_alike_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    reproducible_kernels()
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (False, True)

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from mpt_bihalf.training import Run

Record = dict[str, Any]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks when it is imported
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and its children too
torch.set_num_threads(1)  # the tensors of the tests are small: threads only wait for each other


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a disk of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("a disk of its own needs the right to mount one")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="session", params=["cpu", *["cuda"] * torch.cuda.is_available()])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def trials() -> Callable[..., list[Record]]:
    """Records of one setting: a trial for each accuracy, diverged where it is None."""

    def make(method: str, rate: float, accuracies: list[float | None], **fields: Any) -> list[Record]:
        records = []
        for seed, accuracy in enumerate(accuracies):
            run = Run(method=method, prune_rate=rate, seed=seed, device="cpu", threads=1, **fields)
            values = {name: " ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in asdict(run).items()}
            result = {"status": "diverged: NaN in layer '0' in epoch 1"}
            if accuracy is not None:
                result = {"status": "finished", "test_top1": accuracy, "best_epoch_test_top1": accuracy + 1}  # type: ignore[dict-item]
            records.append({"run": run.name, **values, **result})
        return records

    return make

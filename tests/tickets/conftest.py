from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run, train


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a finished run of one epoch on digits; each kind is trained once."""
    out = tmp_path_factory.mktemp("finished")

    def do(method: str = "mpt-sign", **fields: object) -> Path:
        settings = {"model": "conv2", "width": 0.25, "epochs": 1, "prune_rate": 0.9, "device": "cpu", "threads": 1}
        run = Run(method=method, **(settings | fields)).resolved()  # type: ignore[arg-type]
        folder = run_folder(out, run)
        if not (folder / "result.json").exists():
            train(run, folder)
        return folder

    return do

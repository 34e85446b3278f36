from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from mpt_bihalf.experiments.prune_sweep import PruneSweep
from mpt_bihalf.sweep.engines import LocalEngine, SerialEngine
from mpt_bihalf.training import Run
from tests.processes import Program

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
RUN = str(Path(__file__).with_name("run.py"))


class Executed(NamedTuple):
    """What a notebook has come to."""

    printed: str
    figures: int


@pytest.fixture
def executed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Executed]:
    """Run the notebook that the test file is named after from top to bottom, its sweep and its cache below `tmp_path`.

    Small settings are given by name: epochs=1 is the notebook's MPT_BIHALF_NOTEBOOK_EPOCHS. Its Conv networks are
    narrow, and no worker processes do the runs.
    """
    wanted = PruneSweep.runs

    def narrow(sweep: PruneSweep) -> list[Run]:
        return [replace(run, width=0.1) if run.model == "conv2" else run for run in wanted(sweep)]

    monkeypatch.setattr(PruneSweep, "runs", narrow)
    monkeypatch.setattr(LocalEngine, "do", SerialEngine.do)

    def execute(**settings: int) -> Executed:
        named = {f"MPT_BIHALF_NOTEBOOK_{name.upper()}": str(value) for name, value in settings.items()}
        places = {"MPT_BIHALF_SWEEP": str(tmp_path / "sweep"), "MPT_BIHALF_CACHE": str(tmp_path / "cache")}
        notebook = NOTEBOOKS / f"{request.path.stem.removeprefix('test_')}.ipynb"
        status, out, err = Program(tmp_path, RUN, str(notebook), **named, **places).ended()
        assert status == 0, err
        return Executed(**json.loads(out.splitlines()[-1]))

    return execute

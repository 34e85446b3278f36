from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


class Executed(NamedTuple):
    """What a notebook has come to."""

    printed: str
    figures: int


@pytest.fixture
def executed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Executed]:
    """Run the notebook that the test file is named after from top to bottom, its sweep and its cache below `tmp_path`.

    Small settings are given by name: epochs=1 is the notebook's MPT_BIHALF_NOTEBOOK_EPOCHS.
    """

    def execute(**settings: int) -> Executed:
        monkeypatch.setenv("MPT_BIHALF_SWEEP", str(tmp_path / "sweep"))
        monkeypatch.setenv("MPT_BIHALF_CACHE", str(tmp_path / "cache"))
        for name, value in settings.items():
            monkeypatch.setenv(f"MPT_BIHALF_NOTEBOOK_{name.upper()}", str(value))
        notebook = nbformat.read(NOTEBOOKS / f"{request.path.stem.removeprefix('test_')}.ipynb", as_version=4)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        printed = "".join(output.get("text", "") for output in outputs)
        return Executed(printed, sum("image/png" in output.get("data", {}) for output in outputs))

    return execute

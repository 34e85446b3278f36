"""The notebook runs from top to bottom on a sweep of its own, and stands in the repository with its outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "mpt_sign_vs_bihalf.ipynb"


def test_it_makes_a_small_sweep_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPT_BIHALF_SWEEP", str(tmp_path / "sweep"))
    monkeypatch.setenv("MPT_BIHALF_NOTEBOOK_EPOCHS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "mpt-balanced" in printed
    assert "90 %" in printed
    figures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(figures) == 3


def test_it_is_kept_with_outputs_and_without_errors() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert sum("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs) == 3
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]

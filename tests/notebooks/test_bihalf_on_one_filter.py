"""The notebook finds the closed form in a solver's plan, and the ratio holds while it trains."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "bihalf_on_one_filter.ipynb"


def test_the_solver_agrees_and_the_ratio_holds_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPT_BIHALF_NOTEBOOK_EPOCHS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    solver, top_half, ours, sign = (
        re.search(rf"^{name} +(\[.*\])$", printed, flags=re.MULTILINE)[1]
        for name in ("solver", "top half", "binarize", "sign")
    )
    assert solver == top_half == ours != sign
    assert "D =  9, p_pos =  0.5:  5 of +1,  4 of -1, 1 divided by the solver" in printed
    assert float(re.search(r"200 filters: at most (\S+)", printed)[1]) < 1e-7
    up, down = re.search(r"bihalf flips to \+1: (\d+), to -1: (\d+)", printed).groups()
    assert up == down != "0"
    assert re.search(r"bihalf .*0\.5000 to 0\.5000; lowest mean entropy: 1\.000000", printed)
    assert not re.search(r"^sign .*0\.5000 to 0\.5000", printed, flags=re.MULTILINE)
    figures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(figures) == 8

"""The notebook's methods do what it says of them, and take part in a sweep."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "a_method_of_your_own.ipynb"


def test_own_methods_are_composed_as_told_and_swept_beside_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    monkeypatch.setenv("MPT_BIHALF_SWEEP", str(out))
    monkeypatch.setenv("MPT_BIHALF_NOTEBOOK_EPOCHS", "1")
    monkeypatch.setenv("MPT_BIHALF_NOTEBOOK_TRIALS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))

    flips = {name: int(count) for name, count in re.findall(r"^(\S+) *: +(\d+) kept weights flipped", printed, re.M)}
    assert flips["mpt-bihalf"] > 0 == flips["mpt-balanced"] == flips["mpt-fixed"]
    variances = re.findall(r"^(\S+): .* variance (\S+) to (\S+)$", printed, re.M)
    spread = {name: float(high) / float(low) for name, low, high in variances}
    assert spread["mpt-fixed-f"] < 1.2 < 2 < spread["mpt-fixed"]

    done = [folder.parent.name for folder in out.glob("runs/*/result.json")]
    # 5 methods at 4 rates, 2 more gradients at 3 rates, 5 methods with the first layer left as it is
    assert len(done) == 20 + 6 + 5
    assert sum("-mpt-fixed-f-pruned" in name for name in done) == 5
    assert re.search(r"pruned +mpt-sign +mpt-bihalf +mpt-balanced +mpt-fixed +mpt-fixed-f$", printed, re.M)
    assert re.search(r"pruned +latent +binary +kept$", printed, re.M)
    figures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(figures) == 2

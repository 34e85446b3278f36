"""Every notebook stands in the repository as it was run, from start to end; a test runs it, the README names it."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_with_outputs_and_without_errors_or_places(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [o for cell in cells for o in cell.outputs]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not [o for o in outputs if o.output_type == "error"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert not re.search(r"/(home|root|tmp|Users)/|[A-Z]:\\\\", path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_test_runs_it_and_the_readme_names_it(path: Path) -> None:
    assert (Path(__file__).parent / f"test_{path.stem}.py").is_file()
    assert f"`notebooks/{path.name}`" in (ROOT / "README.md").read_text()

"""The tables of results/README.md are what the records beside it say, cell by cell."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mpt_bihalf.sweep import find_runs, read_records

RESULTS = Path(__file__).parents[1] / "results"
# What tells the rows and the columns of each table apart, and the digits of its cells.
TABLES: dict[str, tuple[list[str], list[str], int]] = {
    "pruning_rates": (["prune_rate"], ["method"], 2),
    "pruning_ablation": (["method", "prune_rate", "scope"], ["scale", "score_gradient"], 1),
    "learning_rates": (["method", "prune_rate"], ["lr"], 1),
    "latent_gradients": (["method", "latent_gradient"], [], 2),
}

Cells = dict[tuple[str, ...], str]


def told(section: str, labels: int, columns: bool) -> Cells:
    """The cells of a section's first table by their rows' labels and their column's."""
    text = (RESULTS / "README.md").read_text().split(f"\n## {section}:")[1]
    lines = [line for line in text.split("\n\n| ")[1].split("\n\n")[0].splitlines() if "---" not in line]
    head, *rows = [[cell.strip() for cell in line.replace("**", "").strip("| ").split(" | ")] for line in lines]
    cells = {}
    for row in rows:
        row_labels = tuple(label.split(",")[0].lower() for label in row[:labels])
        for column, cell in zip(head[labels:] if columns else ("",), row[labels:], strict=False):
            cells[row_labels + ((column,) if columns else ())] = cell
    return cells


def label(field: str, value: Any) -> str:
    return f"{100 * value:g} %" if field == "prune_rate" else f"{value:g}" if field == "lr" else str(value)


def records(folder: str) -> pd.DataFrame:
    frame = pd.DataFrame(read_records(RESULTS / folder, find_runs(RESULTS / folder)))
    assert len(frame) == len(list((RESULTS / folder / "runs").iterdir())) and (frame["status"] == "finished").all()
    return frame


def recorded(frame: pd.DataFrame, rows: list[str], columns: list[str], digits: int) -> Cells:
    cells = {}
    for key, trials in frame.groupby(rows + columns)["test_top1"]:
        labels = [label(field, value) for field, value in zip(rows + columns, key, strict=True)]
        column = (", ".join(labels[len(rows) :]),) if columns else ()
        spread = f" ± {trials.std():.{digits}f}" if len(trials) > 1 else ""
        cells[(*labels[: len(rows)], *column)] = f"{trials.mean():.{digits}f}{spread}"
    return cells


@pytest.mark.parametrize("folder", TABLES)
def test_each_table_is_that_of_its_records(folder: str) -> None:
    rows, columns, digits = TABLES[folder]
    own = recorded(records(folder), rows, columns, digits)
    # The rate that all others have is not trained again.
    others = recorded(records("pruning_rates"), rows, columns, digits) if folder == "learning_rates" else {}
    shown = told(folder, len(rows), bool(columns))
    assert shown == {key: (others | own)[key] for key in shown} and own.keys() <= shown.keys()


def test_the_table_of_variances_is_that_of_its_file() -> None:
    frame = pd.read_csv(RESULTS / "activation_variance" / "activation_variance.csv")
    runs = {(run.method, run.scale, run.prune_rate) for run in find_runs(RESULTS / "activation_variance")}
    measured = {}
    for _, row in frame.iterrows():
        key = (row["method"], row["scale"], label("prune_rate", row["prune_rate"]))
        measured.setdefault(key, {})[row["when"]] = [row["a layer"], row["15"]]
    shown = told("activation_variance", 3, columns=True)
    for key, at in measured.items():
        start, end = ("a layer, start", "last layer, start"), ("a layer, end", "last layer, end")
        for columns, values in ((start, at["start"]), (end, at["end"])):
            cells = [float(shown.pop((*key, column))) for column in columns]
            assert cells == pytest.approx(values, rel=0.06), key
    assert len(shown) == len(runs) == len(measured)  # what is left is the accuracy of each

"""The figures that the papers and the authors' pages publish."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def published(table: str | None = None) -> pd.DataFrame:
    """Published accuracies in percent; with `table` only those of that table of the paper, e.g. `Table 2`.

    Columns: source, table, dataset, model, method, bits_w_a, pruned_percent, top1, top1_std, top5. Models and data sets
    are spelt as there.
    """
    frame = pd.read_csv(Path(__file__).with_name("published.csv"))
    return frame if table is None else frame[frame["table"] == table].reset_index(drop=True)

"""The figures that the papers and the authors' pages publish."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

# Our names of methods that the published tables call otherwise.
OUR_NAMES = {
    "XNOR": "xnor",
    "XNOR++": "xnor++",
    "BNN+": "bnn+",
    "Bi-Real": "bi-real",
    "Least-squares": "least-squares",
    "ABC-Net": "abc",
    "IR-Net": "irnet",
    "RBNN": "rbnn",
}


def published(table: str | None = None) -> pd.DataFrame:
    """Published accuracies in percent; with `table` only those of that table of the paper, e.g. `Table 2`.

    Columns: source, table, dataset, model, method, bits_w_a, pruned_percent, top1, top1_std, top5, recipe. Models,
    data sets and methods are spelt as there; `OUR_NAMES` has ours of the methods. recipe: how the network was trained,
    as far as the table's own paper or the code of the method's authors tells; `not known` where neither does.
    """
    frame = pd.read_csv(Path(__file__).with_name("published.csv"))
    return frame if table is None else frame[frame["table"] == table].reset_index(drop=True)

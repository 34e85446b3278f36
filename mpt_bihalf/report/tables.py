"""Tables of a sweep: rows rates, columns methods, mean ± standard deviation over the trials; or any other fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tabulate import tabulate

from ..data import short_data
from ..endings import one_line
from ..methods import METHODS, Method
from ..sweep import varied
from ..sweep.varied import LEADING, SETTING

# What `summarise_trials` adds.
SUMMARY = ("mean", "std", "finished", "diverged", "trials")
# A planned run that has no result yet has this in the place of a record's status.
MISSING = "missing"
# Before a cell that is the best of its row, and for LaTeX behind it: characters that no name or figure has.
BEST, END = "\ue000", "\ue001"
# Trials from which on a deviation says something.
ENOUGH = 3
# Fields that some methods do not look at: what those methods' row is called, and which they are.
UNUSED: dict[str, tuple[str, Callable[[Method], bool]]] = {
    "prune_rate": ("unpruned", lambda method: method.mask is None),
    "p_pos": ("no prior", lambda method: not method.balanced),
}


@dataclass(frozen=True, kw_only=True)
class View:
    """What of the records is shown, and where."""

    figure: str = "test_top1"
    """of the results"""
    x: str = "prune_rate"
    """the field that a table has rows for and a figure has along its axis"""
    columns: str = "method"
    """the field that a table has columns for and a figure curves; empty: one"""
    by: tuple[str, ...] = SETTING
    """the fields that tell settings apart, x and columns among them; runs of one setting are its trials"""


PRUNING = View()


@dataclass(frozen=True)
class Table:
    """Cells as text, each row after its label; a cell that begins with `BEST` is marked."""

    title: str
    head: list[str]
    rows: list[list[str]]

    @property
    def marks(self) -> bool:
        """Whether a cell is marked."""
        return any(cell.startswith(BEST) for row in self.rows for cell in row)

    def legend(self, style: str = "simple") -> str:
        """A line on what a mark says; empty where there is none."""
        mark = "*" if style == "simple" else "bold"
        return f"{mark}: the best mean of its row, which may be chance" if self.marks else ""

    def text(self, style: str = "simple", columns: int | None = None) -> str:
        """The table in a style of tabulate's; in pieces one below the other where it is wider than `columns`."""
        texts = []
        first, last = 1, len(self.head)
        while first < len(self.head):
            rows = [[row[0], *(self._cell(cell, style) for cell in row[first:last])] for row in self.rows]
            head = [self.head[0], *self.head[first:last]]
            text = tabulate(rows, headers=head, tablefmt=style, stralign="right", disable_numparse=True)
            if columns and last - first > 1 and max(map(len, text.splitlines())) > columns:
                last -= 1
            else:
                texts.append(text)
                first, last = last, len(self.head)
        whole = "\n\n".join(texts)
        # Where a table is escaped, as in LaTeX, what marks a cell comes after.
        return whole.replace(BEST, "\\textbf{").replace(END, "}")

    def _cell(self, cell: str, style: str) -> str:
        text = cell.removeprefix(BEST)
        if style == "simple":
            return f"{text} {'*' if text != cell else ' '}" if self.marks else text
        if text == cell or not text:
            return text
        return f"**{text}**" if style == "github" else f"{BEST}{text}{END}"


def summarise_trials(records: list[dict[str, Any]] | pd.DataFrame, view: View = PRUNING) -> pd.DataFrame:
    """A row for each setting: the fields of `view.by`, then `mean`, `std`, `finished`, `diverged` and `trials`.

    mean and std (of a sample) are of the view's figure over the `finished` of the `trials`; `diverged` ones have none,
    and those that are neither are `MISSING`. Settings stand in the order of the records.
    """
    frame = pd.DataFrame(records)
    figure = frame[view.figure].astype(float) if view.figure in frame else float("nan")
    lost = frame["status"] != MISSING
    frame = frame[list(view.by)].assign(mean=figure, diverged=lost)
    frame["diverged"] &= frame["mean"].isna()
    settings = frame.groupby(list(view.by), sort=False, dropna=False)
    return settings.agg(
        mean=("mean", "mean"),
        std=("mean", "std"),
        finished=("mean", "count"),
        diverged=("diverged", "sum"),
        trials=("mean", "size"),
    ).reset_index()


def varied_fields(frame: pd.DataFrame) -> list[str]:
    """As `sweep.varied` has them, of these records."""
    return varied.varied_fields(frame[[name for name in SETTING if name in frame]].to_dict("records"))


def split_settings(summary: pd.DataFrame, view: View = PRUNING) -> list[tuple[str, pd.DataFrame]]:
    """The summary in titled parts that a table or a panel shows each: by network, data and whatever else was varied.

    A method with one value of a field that others vary (it does not look at it) stands in every part.
    """
    placed = (view.x, view.columns)
    leading = [name for name in LEADING if name in view.by and name not in placed]
    blocks = summary.groupby(leading, sort=False) if leading else [((), summary)]
    parts = []
    for values, block in blocks:
        title = [
            short_data(str(value)) if name == "data" else str(value)
            for name, value in zip(leading, values, strict=True)
        ]
        rates = set(block["prune_rate"]) - {0.0} if "prune_rate" in block and "prune_rate" not in placed else set()
        if len(rates) == 1:  # of all that are pruned
            title.append(f"{row_label('prune_rate', rates.pop())} pruned")
        fields = [name for name in varied_fields(block) if name not in (*placed, *leading)]
        fields += ["seed"] * ("seed" in view.by and "seed" not in placed)
        methods = block["method"] if "method" in block else pd.Series("", index=block.index)
        single = block[fields].groupby(methods, sort=False).nunique(dropna=False) == 1 if fields else pd.DataFrame()
        ignored = {name: methods.map(single[name]) for name in fields}
        points = block[fields].drop_duplicates() if fields else pd.DataFrame(index=[0])
        for _, point in points.iterrows():
            chosen = pd.Series(True, index=block.index)
            for name in fields:
                chosen &= (block[name] == point[name]) | ignored[name]
            extra = [f"{name} {'none' if point[name] == '' else point[name]}" for name in fields]
            parts.append((one_line(", ".join([*title, *extra])), block[chosen]))
    return parts


def sweep_tables(records: list[dict[str, Any]] | pd.DataFrame, view: View = PRUNING) -> list[Table]:
    """The tables of a sweep: the view's figure, the best of each row marked. Needs at least one record.

    Marked is the best mean of the cells of which no trial is missing, if there are two such cells that differ, and no
    other cell is better so far. Methods that do not look at the field of the rows stand in a row of their own, as
    `unpruned`.
    """
    return [
        Table(f"{title}{': ' if title else ''}{what_cells_are(part, view)}", *_body(part, view))
        for title, part in split_settings(summarise_trials(records, view), view)
    ]


def sweep_table(records: list[dict[str, Any]]) -> str:
    """The tables of a pruning sweep as text: last-epoch test top-1 in percent by rate and method."""
    tables = sweep_tables(records)
    texts = [f"{table.title}\n{table.text()}" for table in tables]
    return "\n\n".join([*texts, *legends(tables)])


def legends(tables: Sequence[Table], style: str = "simple") -> list[str]:
    """A line on what marks in these tables say; none where there are none."""
    return [*dict.fromkeys(line for line in (table.legend(style) for table in tables) if line)]


def what_cells_are(part: pd.DataFrame, view: View) -> str:
    """The figure, its unit, and of how many trials."""
    unit = f" in {unit_of(view.figure)}" if unit_of(view.figure) else ""
    return f"{figure_name(view.figure)}{unit}, {of_trials(int(part['trials'].max()))}"


def of_trials(count: int) -> str:
    """What a cell or a point says of so many trials."""
    return f"mean ± standard deviation of {count} trials" if count > 1 else "1 trial"


def _body(part: pd.DataFrame, view: View) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one table."""
    columns = list(dict.fromkeys(part[view.columns])) if view.columns else [figure_name(view.figure)]
    aside = unused(part, view.x)
    rows = [(UNUSED[view.x][0], part[aside])] if aside.any() else []
    numeric = pd.api.types.is_numeric_dtype(part[view.x])
    at = part[~aside].groupby(view.x, sort=numeric, dropna=False)
    rows += [(row_label(view.x, value), rows_at) for value, rows_at in at]
    head = ["pruned" if view.x == "prune_rate" else view.x, *map(one_line, columns)]
    return head, [[one_line(label), *_cells(row, columns, view)] for label, row in rows]


def unused(part: pd.DataFrame, x: str) -> pd.Series[bool]:
    """Which rows are of methods that do not look at the field `x`."""
    if x not in UNUSED or "method" not in part:
        return pd.Series(False, index=part.index)
    aside = part["method"].isin([name for name, method in METHODS.items() if UNUSED[x][1](method)])
    return aside & (part[x] == 0) if x == "prune_rate" else aside  # else it is pruned by a mask that is fixed


def row_label(x: str, value: Any) -> str:
    """A value of the field `x` as a row is called."""
    if x == "prune_rate":
        return f"{100 * value:g} %"
    return short_data(str(value)) if x == "data" else f"{value:g}" if isinstance(value, float) else str(value)


def _cells(row: pd.DataFrame, columns: Sequence[Any], view: View) -> list[str]:
    better = {"top1": "max", "top5": "max", "loss": "min"}.get(view.figure.rsplit("_", 1)[-1])
    best = _best(row, better) if better else None
    found = {setting[view.columns] if view.columns else columns[0]: setting for setting in row.to_dict("records")}
    cells = []
    for column in columns:
        setting = found.get(column)
        if setting is None:
            cells.append("")
            continue
        complete = setting["trials"] == setting["finished"] + setting["diverged"]
        marked = complete and best is not None and setting["mean"] == best
        cells.append(f"{BEST * marked}{_cell(setting, view.figure)}")
    return cells


def _best(row: pd.DataFrame, better: str) -> float | None:
    """The best mean of a row, max or min; None where nothing is to be told from others yet."""
    whole = row[(row["trials"] == row["finished"] + row["diverged"]) & row["mean"].notna()]
    best = getattr(row["mean"], better)()
    compared = len(whole) > 1 and whole["mean"].nunique() > 1
    return float(best) if compared and (whole["mean"] == best).any() else None


def _cell(setting: dict[str, Any], figure: str) -> str:
    trials, finished, diverged = setting["trials"], setting["finished"], setting["diverged"]
    missing = trials - finished - diverged
    if trials in (diverged, missing):
        return "diverged" if diverged else MISSING
    spread = f" ± {number_text(setting['std'], figure)}" if finished > 1 else ""
    value = f"{number_text(setting['mean'], figure)}{spread}"
    if not finished:
        return f"{diverged} of {trials} diverged"
    if diverged:
        return f"{value} ({diverged} of {trials} diverged{f', {missing} {MISSING}' if missing else ''})"
    return f"{value} ({finished} of {trials})" if missing else value


def figure_name(figure: str) -> str:
    """A figure of a result as text has it: `test_top1` is test top-1."""
    return figure.replace("_top", "_top-").replace("_", " ").replace("best epoch ", "best epoch's ")


def unit_of(figure: str) -> str:
    return "%" if figure.endswith(("_top1", "_top5")) else ""


def number_text(value: float, figure: str) -> str:
    """A value of this figure with the digits that it deserves."""
    return f"{value:.2f}" if unit_of(figure) else f"{value:.4f}" if figure.endswith("_loss") else f"{value:.3g}"

"""The report of any sweep, finished or not: tables and a figure, grouped and filtered by any field of the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from ..commandline import words
from ..data import short_data
from ..endings import one_line, show
from ..files import output_folder, write_csv, write_text
from ..sweep.records import named_nothing, noted, record
from ..sweep.shown import Shown
from ..sweep.status import strangers_text, unregistered
from ..sweep.survey import OVER, Survey
from ..sweep.varied import LEADING, SETTING
from ..training import Run
from ..training.log import FINISHED
from ..training.parts import changed_parts
from ..training.step import FIGURES
from .against import against_tables
from .figures import draw_sweep, save_figure
from .layers import layer_records, layer_views
from .outcome import STYLES
from .tables import (
    ENOUGH,
    MISSING,
    SUMMARY,
    Table,
    View,
    legends,
    summarise_trials,
    sweep_tables,
    varied_fields,
)

FIELDS = [field.name for field in fields(Run)]
# What a sweep seldom varies on purpose: it is nobody's axis unless asked for.
INCIDENTAL = ("threads", "trace", "device")
MOST_VALUES = 20


def sweep_report(found: Survey, shown: Shown, columns: int | None = None) -> None:
    """Print the tables of the sweep, and write them and the figure to `shown.to`, or else below the sweep's folder.

    columns: width of the screen, into which tables are broken; None: unlimited. Raises ValueError, naming what is
    known, for a field, a value or a figure that is not.
    """
    frame, notes = told_apart(chosen_records(records_of(found), shown.where))
    view = choose_view(frame, shown)
    done = frame["status"] != MISSING
    if not done.any():
        raise ValueError(f"none of {len(frame):,} runs is done yet: see python -m mpt_bihalf status {found.out}")
    without = (frame["status"] == FINISHED) & frame.reindex(columns=[view.figure])[view.figure].isna()
    if without.any():
        notes.append(f"{without.sum():,} finished runs have no {view.figure} and are left out")
    unfinished = "" if done.all() else f"{done.sum():,} of {len(frame):,} runs are done"
    others = [f"{count:,} {state}" for state, count in frame["state"].value_counts().items() if state not in OVER]
    notes += [f"{unfinished}; {', '.join(others)}"] * bool(unfinished) + pooled(frame, view)
    notes += noted(frame.reindex(columns=["run", "note"]).to_dict("records"))
    if found.counts["unreadable"]:
        notes.append(f"{found.counts['unreadable']:,} runs may not be read and count as {MISSING}")
    if found.strangers:
        notes.append(f"passed over: {strangers_text(found.strangers)}")
    for part in unregistered(status.run for status in found.runs if status.run):
        notes.append(f"{part} is not registered here, and its figures stand as they were written")
    for part, count in changed(found).items():
        notes.append(f"{part} is not what it was when {count:,} of these runs were made")

    frame = frame[~without]
    tables = sweep_tables(frame, view)
    if shown.against:
        tables += against_tables(frame, view, shown.against)
    notes += few_seeds(frame, view)
    try:
        path = report_folder(found.out, shown.to) / view.figure
        write_tables(path, tables)
        write_csv(path.with_name(path.name + ".csv"), long_rows(frame, view))
        png, pdf = save_figure(draw_sweep(frame, view, unfinished), path)
    finally:  # where nothing can be written, it can be read
        show(tables_text(tables, columns) + "\n")
        if notes:
            show("\n".join(notes) + "\n")
    show(f"tables: {path}.txt, .csv, .md, .tex\nfigure: {png}, {pdf}")
    if shown.layers:
        runs = {status.name: status.run for status in found.of("done") if status.run}
        report_layers(layer_records(found.out, runs, frame), view, path.parent, columns)


def tables_text(tables: Sequence[Table], columns: int | None = None) -> str:
    """The tables as a screen of this width has them, and what their marks say; without a width it is unlimited."""
    return "\n\n".join([*(f"{table.title}\n{table.text(columns=columns)}" for table in tables), *legends(tables)])


def few_seeds(frame: pd.DataFrame, view: View) -> list[str]:
    """A line where few trials stand behind some cells."""
    finished = summarise_trials(frame, view)["finished"]
    few, cells = int(finished.between(1, ENOUGH - 1).sum()), int((finished > 0).sum())
    return [f"fewer than {ENOUGH} seeds stand behind {few:,} of {cells:,} cells"] * (few > 0 and "seed" not in view.by)


def changed(found: Survey) -> Counter[str]:
    """The parts of users' own that have changed since done runs were made, and since how many."""
    done = [status for status in found.of("done") if status.run and not status.run.unregistered]
    folder = found.out / "runs"
    return Counter(part for each in done if each.run for part in changed_parts(each.run, folder / each.name))


def report_layers(records: pd.DataFrame, view: View, folder: Path, columns: int | None) -> None:
    """Print and write the tables of the sweep by layer, and a figure for each of what is measured there."""
    views = layer_views(view)
    tables = [table for each in views for table in sweep_tables(records, each)]
    path = folder / "layers"
    write_tables(path, tables)
    write_csv(path.with_name("layers.csv"), [row for each in views for row in long_rows(records, each)])
    figures = [save_figure(draw_sweep(records, each), folder / f"layers_{each.figure}")[0] for each in views]
    show("\n" + "\n\n".join(f"{table.title}\n{table.text(columns=columns)}" for table in tables) + "\n")
    show(f"tables: {path}.txt, .csv, .md, .tex\nfigures: {', '.join(map(str, figures))}, and as .pdf")


def write_tables(path: Path, tables: Sequence[Table]) -> None:
    """The tables as `path`.txt, .md and .tex."""
    for ending, style in STYLES.items():
        heading = {".md": "**{}**\n", ".tex": "% {}"}.get(ending, "{}")
        texts = [f"{heading.format(table.title)}\n{table.text(style)}" for table in tables]
        texts += [heading.format(line) if ending == ".tex" else line for line in legends(tables, style)]
        write_text(path.with_name(path.name + ending), "\n\n".join(texts) + "\n")


def records_of(found: Survey) -> pd.DataFrame:
    """A row for each run that is known: its record, or its configuration with the status `MISSING`, and its state.

    ValueError where no run is known.
    """
    known = [(status, status.run) for status in found.runs if status.run]
    if not known:
        raise ValueError(f"no run that may be read lies in {found.out}")
    rows = [
        record(run, status.result or {"status": MISSING}, found.out / "runs" / status.name) for status, run in known
    ]
    return pd.DataFrame(rows).assign(state=[status.state for status, _ in known])


def told_apart(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The records with one name for the same data, whatever path they were read from, and a name each for different
    data under one path; and lines that say so.

    Of a run that was done twice, on the same data under two paths, the first done record is kept.
    """
    known, notes = frame["data_digest"] != "", []
    paths = frame[known].groupby("data_digest", sort=False)["data"].unique()
    names = frame["data"].where(~known, frame["data_digest"].map({digest: those[0] for digest, those in paths.items()}))
    for first, *others in paths:
        for other in others:
            notes.append(f"{one_line(other)} holds the same data as {one_line(first)}, and is shown as it")
    for name, digests in frame[known].groupby("data", sort=False)["data_digest"].unique().items():
        if len(digests) > 1:
            notes.append(f"{one_line(name)} was {len(digests)} different data sets at different times")
        else:  # planned runs will see what the others saw
            names = names.mask((frame["data"] == name) & (frame["status"] == MISSING), paths[digests[0]][0])
    short = names.map(short_data)
    for name, digests in frame[known].groupby(short[known], sort=False)["data_digest"].unique().items():
        if len(digests) > 1:
            notes.append(f"{one_line(name)} is {len(digests)} different data sets: each is shown apart, by its digest")
            here = known & (short == name)
            place = names.where(names.str.startswith("folder:"), name)  # of other kinds a title has no path
            names = names.where(~here, place + " (" + frame["data_digest"] + ")")
    untold = int(((frame["status"] != MISSING) & ~known).sum())
    if untold:
        notes.append(f"runs that do not tell what data they saw: {untold:,}")
    frame = frame.assign(data=names)
    order = (frame["status"] == MISSING) * 2 + (frame["data_digest"] == "")
    done = frame.loc[order.sort_values(kind="stable").index]
    same = done.duplicated([*SETTING, "seed"])
    repeats = same[same].index
    if len(repeats):
        notes.append(f"{len(repeats):,} runs repeat others on the same data and are counted once")
    return frame.drop(index=repeats), notes


def chosen_records(frame: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """The rows that all entries `field=value,value` or `field=low..high` hold for. ValueError for what none has."""
    for entry in where:
        name, equals, texts = entry.partition("=")
        name, told = _field(name, f"where {entry!r}"), f"where {entry!r}"
        if not equals or not texts:
            raise ValueError(f"{told}: write field=value,value or field=low..high")
        column = frame[name]
        kept = pd.Series(False, index=frame.index)
        for text in texts.split(","):
            matching = _matching(column, text.strip())
            if not matching.any():
                values = sorted(column.unique())
                known = ", ".join(_word(value) for value in values[:MOST_VALUES]) + ", ..." * (
                    len(values) > MOST_VALUES
                )
                raise ValueError(f"{told}: no run has {name} {text!r}; they have {known or 'none'}")
            kept |= matching
        frame = frame[kept]
    return frame


def _matching(column: pd.Series[Any], text: str) -> pd.Series[bool]:
    """Which values a word of the command line means: itself, or for numbers a range."""
    nothing = pd.Series(False, index=column.index)
    if not is_numeric_dtype(column) or is_bool_dtype(column):
        return column.map(_word) == text
    try:
        low, _, high = text.partition("..")
        return column.between(float(low), float(high or low))
    except ValueError:
        return nothing


def _word(value: Any) -> str:
    """A value as one writes it on the command line, where nothing is `none`."""
    word = one_line(value).replace(" ", "+")
    return word.lower() if word in ("True", "False") else word or "none"


def _field(name: str, told: str) -> str:
    """The field of a run of this name. ValueError for another."""
    if name.strip().replace("-", "_") not in FIELDS:
        raise ValueError(f"{told}: a run has no field {name!r}; it has {', '.join(FIELDS)}")
    return name.strip().replace("-", "_")


def choose_view(frame: pd.DataFrame, shown: Shown) -> View:
    """What to show of these records: what was asked for, and for the rest what the records differ in.

    Raises ValueError for a field that a run has not and a figure that no result has.
    """
    own = {"run", "status", "state", *FIELDS}
    figures = [name for name in frame if name not in own and is_numeric_dtype(frame[name])] or FIGURES
    if shown.figure not in figures:
        raise ValueError(f"figure {shown.figure!r}: no result has it; they have {', '.join(figures)}")
    by = [_field(name, "by") for name in words(shown.by)]
    x, columns = shown.x and _field(shown.x, "x"), shown.columns and _field(shown.columns, "columns")
    varied = varied_fields(frame)
    candidates = [name for name in by or varied if name not in (columns, "method", *(() if by else INCIDENTAL))]
    candidates = [name for name in candidates if name in varied] or candidates
    numbers = [name for name in SETTING if name in candidates and is_numeric_dtype(frame[name])]
    numbers = [name for name in numbers if not is_bool_dtype(frame[name])]
    first = ["prune_rate"] * ("prune_rate" in numbers) + numbers + candidates
    x = x or next((name for name in first), "" if columns == "method" else "method")
    x = x or next(name for name in ("model", "data") if name != columns)
    columns = columns or ("method" if x != "method" and (not by or "method" in by) else "")
    if x == columns:
        raise ValueError(f"x and columns are both {x!r}: choose two fields")
    return View(
        figure=shown.figure,
        x=x,
        columns=columns,
        by=tuple(dict.fromkeys(name for name in (*(by or SETTING), x, columns) if name)),
    )


def pooled(frame: pd.DataFrame, view: View) -> list[str]:
    """A line for each varied field that makes no setting, so that a mean runs over its values."""
    return [
        f"each mean is over {name} {', '.join(_word(value) for value in frame[name].unique()[:MOST_VALUES])}"
        for name in varied_fields(frame)
        if name not in view.by
    ]


def long_rows(frame: pd.DataFrame, view: View) -> list[dict[str, Any]]:
    """A row for each setting: its fields, the figure, mean, std, and how many trials there are of each kind."""
    summary = summarise_trials(frame, view)
    told = {*LEADING, *varied_fields(frame), view.x, view.columns, "seed"}
    names = [name for name in dict.fromkeys([*LEADING, *FIELDS, view.x]) if name in view.by and name in told]
    rows = []
    for setting in summary.to_dict("records"):
        row = named_nothing({name: setting[name] for name in names})
        row = {name: one_line(value) if isinstance(value, str) else value for name, value in row.items()}
        row |= {"figure": view.figure}
        row |= {name: None if pd.isna(setting[name]) else setting[name] for name in SUMMARY}
        rows.append(row | {MISSING: setting["trials"] - setting["finished"] - setting["diverged"]})
    return rows


def report_folder(out: Path, to: str) -> Path:
    """The folder that the report goes to, made where there is none. ValueError where it leads out of the sweep's."""
    folder = output_folder(to) if to else out / "report"
    if not to and folder.is_symlink():
        raise ValueError(f"{str(folder)!r} is a link, which may lead anywhere: choose a folder by --to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise ValueError(f"{fault.strerror}: {str(folder)!r}; choose another folder by --to") from None
    return folder

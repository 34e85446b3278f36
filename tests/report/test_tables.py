from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpt_bihalf.methods import METHODS
from mpt_bihalf.report import sweep_table
from mpt_bihalf.report.tables import MISSING, Table, split_settings, summarise_trials, sweep_tables
from mpt_bihalf.training import Run

Trials = Callable[..., list[dict[str, Any]]]


def cells(text: str) -> dict[str, dict[str, str]]:
    """Row label -> method -> cell of one table, whitespace gone; columns are found by the ruler line."""
    _, head, ruler, *rows = text.partition("\n\n")[0].splitlines()
    ends = [i for i, c in enumerate(ruler + " ") if c == " " and (i == 0 or (ruler + " ")[i - 1] == "-")]
    starts = [0, *(end + 1 for end in ends[:-1])]
    columns = [(a, b) for a, b in zip(starts, ends, strict=True)]
    names = [head[a:b].strip() for a, b in columns]
    table = {}
    for row in rows:
        values = [row[a:b].strip() for a, b in columns]
        table[values[0]] = dict(zip(names[1:], values[1:], strict=True))
    return table


def stats(*values: float) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def test_cells_are_mean_and_sample_standard_deviation_and_the_best_of_a_row_is_marked(
    sweep: list[dict[str, Any]],
) -> None:
    table = cells(sweep_table(sweep))
    assert list(table) == ["unpruned", "10 %", "50 %"]
    assert table["10 %"]["mpt-sign"] == stats(50, 52, 57)
    assert table["10 %"]["mpt-bihalf"] == stats(70, 70.5, 71.5) + " *"
    assert table["50 %"]["mpt-sign"] == stats(60, 61, 62) + " *"
    assert table["unpruned"]["sign"] == stats(64, 66, 71)
    assert table["unpruned"]["bihalf"] == stats(80, 80, 83) + " *"


def test_pruned_methods_have_no_unpruned_cell_and_unpruned_ones_no_other(sweep: list[dict[str, Any]]) -> None:
    table = cells(sweep_table(sweep))
    assert (table["unpruned"]["mpt-sign"], table["10 %"]["sign"]) == ("", "")


def test_diverged_trials_are_left_out_of_the_mean_and_counted(sweep: list[dict[str, Any]]) -> None:
    assert cells(sweep_table(sweep))["50 %"]["mpt-bihalf"] == stats(55, 56) + " (1 of 3 diverged)"


def test_a_setting_of_which_every_trial_diverged_says_so_and_is_never_the_best(trials: Trials) -> None:
    table = cells(sweep_table([*trials("mpt-sign", 0.5, [None, None]), *trials("mpt-bihalf", 0.5, [10.0, 11.0])]))
    assert table["50 %"] == {"mpt-sign": "diverged", "mpt-bihalf": stats(10, 11)}
    table = cells(sweep_table(trials("mpt-sign", 0.5, [None, None])))
    assert table["50 %"] == {"mpt-sign": "diverged"}


def test_one_trial_has_no_standard_deviation(trials: Trials) -> None:
    assert cells(sweep_table(trials("mpt-sign", 0.5, [51.5])))["50 %"] == {"mpt-sign": "51.50"}


def test_the_heading_tells_network_data_and_what_the_figures_are(sweep: list[dict[str, Any]]) -> None:
    heading = sweep_table(sweep).splitlines()[0]
    for word in ("conv2", "digits", "top-1 in %", "mean ± standard deviation", "3 trials"):
        assert word in heading


def test_several_networks_make_separate_tables(trials: Trials) -> None:
    records = [r for model in ("conv2", "conv4") for r in trials("mpt-sign", 0.5, [50.0, 51.0], model=model)]
    tables = sweep_table(records).split("\n\n")
    assert [table.splitlines()[0].split(",")[0] for table in tables] == ["conv2", "conv4"]


def test_what_a_grid_varies_makes_separate_tables_titled_by_it(trials: Trials) -> None:
    records = [
        record
        for lr in (0.1, 0.05)
        for scope in ("layer", "global")
        for record in trials("mpt-sign", 0.5, [lr * 100, lr * 100 + 1], lr=lr, scope=scope)
    ]
    tables = sweep_table(records).split("\n\n")
    headings = [table.splitlines()[0] for table in tables]
    assert len(tables) == 4
    for heading, lr, scope in zip(headings, ("0.1", "0.1", "0.05", "0.05"), ("layer", "global") * 2, strict=True):
        assert f"lr {lr}" in heading
        assert f"scope {scope}" in heading
    assert cells(tables[2])["50 %"]["mpt-sign"] == stats(5, 6)


def test_methods_whose_own_scales_differ_share_a_table(sweep: list[dict[str, Any]]) -> None:
    assert {record["scale"] for record in sweep} == {"l1", "kaiming"}
    assert len(split_settings(summarise_trials(sweep))) == 1


def test_a_method_of_ones_own_without_a_mask_is_unpruned(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["sign"], name="mine"))
    table = cells(sweep_table([*trials("mine", 0.0, [50.0, 60.0]), *trials("mpt-sign", 0.5, [50.0, 60.0])]))
    assert list(table) == ["unpruned", "50 %"] and table["unpruned"]["mine"] == stats(50, 60)


def test_a_mark_is_explained_and_stands_only_where_something_is_compared(trials: Trials) -> None:
    legend = "*: the best mean of its row, which may be chance"
    two = sweep_table([*trials("mpt-sign", 0.5, [50.0]), *trials("mpt-bihalf", 0.5, [60.0])])
    assert two.splitlines()[-1] == legend
    assert cells(two)["50 %"]["mpt-bihalf"] == "60.00 *"
    for alone in (
        trials("mpt-sign", 0.5, [50.0]),
        [*trials("mpt-sign", 0.5, [50.0]), *trials("mpt-bihalf", 0.5, [50.0])],
        [*trials("mpt-sign", 0.5, [50.0]), *trials("mpt-bihalf", 0.5, [None])],
    ):
        assert "*" not in sweep_table(alone)


def test_an_unfinished_cell_is_not_the_best_and_none_below_it_is(trials: Trials) -> None:
    def missing(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rest = {"run", "test_top1", "best_epoch_test_top1"}
        return [
            {name: value for name, value in row.items() if name not in rest} | {"status": MISSING} for row in records
        ]

    full = [*trials("mpt-sign", 0.5, [50.0, 50.0]), *trials("mpt-balanced", 0.5, [40.0, 40.0])]
    under_way = trials("mpt-bihalf", 0.5, [60.0, 60.0])
    table = cells(sweep_table([*full, under_way[0], *missing(under_way[1:])]))
    assert table["50 %"] == {"mpt-sign": stats(50, 50), "mpt-balanced": stats(40, 40), "mpt-bihalf": "60.00 (1 of 2)"}
    table = cells(sweep_table([*full, *trials("mpt-bihalf", 0.5, [45.0]), *missing(under_way[1:])]))
    assert table["50 %"]["mpt-sign"] == stats(50, 50) + " *"


def test_the_best_is_bold_in_markdown_and_latex(trials: Trials) -> None:
    (table,) = sweep_tables([*trials("mpt-sign", 0.5, [50.0]), *trials("mpt-bihalf", 0.5, [60.0])])
    assert "**60.00**" in table.text("github")
    assert "**50.00**" not in table.text("github")
    assert "\\textbf{60.00}" in table.text("latex_booktabs")
    assert "50 \\%" in table.text("latex_booktabs")
    for style in ("github", "latex_booktabs"):
        assert table.legend(style) == "bold: the best mean of its row, which may be chance"


def test_an_unpruned_method_is_compared_in_every_table_of_a_grid_that_it_ignores(trials: Trials) -> None:
    records = [r for scope in ("layer", "global") for r in trials("mpt-sign", 0.5, [50.0, 51.0], scope=scope)]
    tables = sweep_table([*records, *trials("sign", 0.0, [60.0, 61.0])]).split("\n\n")
    assert len(tables) == 2
    assert all("unpruned" in table for table in tables)


def test_a_summary_has_a_row_a_setting(sweep: list[dict[str, Any]]) -> None:
    summary = summarise_trials(sweep)
    assert list(zip(summary["method"], summary["prune_rate"], summary["finished"], summary["trials"], strict=True)) == [
        ("mpt-sign", 0.1, 3, 3),
        ("mpt-sign", 0.5, 3, 3),
        ("mpt-bihalf", 0.1, 3, 3),
        ("mpt-bihalf", 0.5, 2, 3),
        ("sign", 0.0, 3, 3),
        ("bihalf", 0.0, 3, 3),
    ]
    assert summary["mean"].tolist() == pytest.approx([53, 61, 212 / 3, 55.5, 67, 81])


def test_rates_are_rows_in_ascending_order_with_the_percentage_written_plainly(trials: Trials) -> None:
    records = [record for rate in (0.95, 0.07, 0.999) for record in trials("mpt-sign", rate, [50.0])]
    assert list(cells(sweep_table(records))) == ["7 %", "95 %", "99.9 %"]


def test_what_a_fixed_mask_prunes_stands_in_the_row_of_its_rate() -> None:
    records = [
        {**vars(Run(method=method, mask=mask, prune_rate=rate)), "test_top1": top1, "status": "finished"}
        for method, mask, rate, top1 in (
            ("dense", "", 0.0, 90.0),
            ("dense", "snip", 0.5, 80.0),
            ("dense", "snip", 0.9, 70.0),
            ("mpt-sign", "", 0.5, 60.0),
            ("mpt-sign", "", 0.9, 50.0),
        )
    ]
    none, snip = sweep_tables(records)
    assert "mask none" in none.title and "mask snip" in snip.title

    def told(table: Table) -> dict[str, list[str]]:
        return {row[0]: [cell.strip("\ue000") for cell in row[1:]] for row in table.rows}

    assert told(none)["unpruned"][table_column(none, "dense")].startswith("90")
    assert "unpruned" not in told(snip)
    assert [told(snip)[rate][table_column(snip, "dense")][:2] for rate in ("50 %", "90 %")] == ["80", "70"]
    assert [told(snip)[rate][table_column(snip, "mpt-sign")][:2] for rate in ("50 %", "90 %")] == ["60", "50"]


def table_column(table: Table, method: str) -> int:
    return table.head.index(method) - 1

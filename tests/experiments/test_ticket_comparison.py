from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.lines import Line2D
from scipy.stats import ttest_rel

from mpt_bihalf.experiments import ticket_comparison
from mpt_bihalf.experiments.ticket_comparison import TicketComparison
from mpt_bihalf.training import Run
from tests.reference import one_line_error

TOP1 = {"mpt-sign": [70.0, 71.0, 75.0], "mpt-balanced": [80.0, 82.0, 85.5], "snip + dense": [60.0, 68.0, 50.0]}


def frame(top1: dict[str, list[float]] = TOP1, rates: tuple[float, ...] = (0.5, 0.9)) -> pd.DataFrame:
    records = [
        {"model": "conv2", "data": "digits", "method": ticket.split()[-1], "prune_rate": rate, "seed": seed}
        | {"test_top1": value}
        | {"mask": ticket.split()[0] if "+" in ticket else ""}
        for ticket, values in top1.items()
        for rate in rates
        for seed, value in enumerate(values)
    ]
    whole = {"model": "conv2", "data": "digits", "prune_rate": 0.0, "seed": 0, "test_top1": 99.0, "mask": ""}
    records += [{**whole, "method": "dense"}]
    return ticket_comparison.with_tickets(records)


def test_runs_are_of_equal_counts() -> None:
    runs = TicketComparison(device="cpu", threads=1, trials=2, rates="0.5,0.9").runs()
    assert len(runs) == len(set(runs)) == 2 * ((4 + 2 + 2 + 1) * 2 + 2 * (1 + 6 * 2))
    rates = {rate: {(run.mask, run.method) for run in runs if run.prune_rate == rate} for rate in (0.5, 0.9)}
    assert rates[0.5] == rates[0.9] and len(rates[0.5]) == 16
    assert {run.method for run in runs if not run.prune_rate} == {"dense", "bihalf"}
    assert all(run.scope == ("global" if run.mask else "layer") for run in runs)
    assert {run.lr for run in runs if run.method == "dense"} == {0.01}
    some = TicketComparison(device="cpu", threads=1, trials=1, rates="0.5", masks=["snip"], methods=["sign"]).runs()
    assert [(run.mask, run.prune_rate) for run in some] == [("", 0.0), ("snip", 0.5)]


def test_weights_are_redrawn_as_often_as_a_run_has_room_for() -> None:
    def redrawn(**options: Any) -> set[tuple[str, str, int]]:
        runs = TicketComparison(device="cpu", threads=1, trials=1, rates="0.5", **options).runs()
        return {(run.method, run.redraw, run.redraw_every) for run in runs if run.redraw}

    quick = {("mpt-sign", "iterand", 10), ("mpt-bihalf", "iterand", 10), ("mpt-balanced", "iterand", 10)}
    recycled = {("mpt-sign", "recycle", 1), ("mpt-bihalf", "recycle", 1)}
    assert redrawn() == quick | recycled
    assert redrawn(epochs=1) == quick
    assert redrawn(redraws=["none"]) == set()
    assert {every for _, _, every in redrawn(recipe="paper")} == {300, 10}
    assert redrawn(methods=["mpt-sign"], redraws=["iterand"], redraw_every=7) == {("mpt-sign", "iterand", 7)}
    with one_line_error("unknown redraw 'x'; known: iterand, recycle, none"):
        redrawn(redraws=["x"])


def test_the_recipe_of_the_paper_is_for_cifar10() -> None:
    runs = TicketComparison(recipe="paper", device="cpu", threads=1).runs()
    assert {(run.data, run.model, run.epochs) for run in runs} == {("cifar10", "conv4", 100)}


def test_rows_have_means_and_tests_by_holm() -> None:
    rows = ticket_comparison.rows_of(frame())
    assert [(row["ticket"], row["kept, %"]) for row in rows] == [
        *((ticket, kept) for ticket in TOP1 for kept in (50, 10)),
        ("dense", 100),
    ]
    found = {row["ticket"]: row for row in rows if row["kept, %"] == 50}
    assert found["mpt-balanced"]["difference"] == pytest.approx(31.5 / 3)
    p = {name: ttest_rel(TOP1[name], TOP1["mpt-sign"]).pvalue for name in ("mpt-balanced", "snip + dense")}
    # Of four tests, two of each p.
    assert found["mpt-balanced"]["p"] == pytest.approx(4 * p["mpt-balanced"])
    assert found["snip + dense"]["p"] == pytest.approx(2 * p["snip + dense"])
    assert found["mpt-sign"]["p"] != found["mpt-sign"]["p"]


def test_the_finding_is_that_of_the_records() -> None:
    told = ticket_comparison.finding_of(ticket_comparison.rows_of(frame()))
    assert (
        "conv2, the most accurate of binary and of real weights: 50 % kept mpt-balanced 82.5 and snip + dense 59.3"
        in told
    )
    assert "10 % kept mpt-balanced 82.5 and snip + dense 59.3; not pruned, dense 99.0. " in told
    assert told.endswith(
        "2 of 4 cells are above mpt-sign and 0 below with p < 0.05 by Holm; 3 trials a cell are few for so many cells"
    )
    alone = ticket_comparison.rows_of(frame({"mpt-sign": [70.0]}))
    assert ticket_comparison.finding_of(alone).endswith("too few finished runs to tell it from chance")


def test_the_picture_has_a_panel_for_each_kind_of_weights() -> None:
    binary, real = ticket_comparison.draw(frame()).axes
    assert [text.get_text() for text in binary.get_legend().get_texts()] == ["mpt-sign", "mpt-balanced"]
    assert [text.get_text() for text in real.get_legend().get_texts()] == ["dense, not pruned", "snip + dense"]
    assert binary.get_xlim()[0] > binary.get_xlim()[1]
    curves = ticket_comparison.curves_of(frame())
    assert curves["conv2/mpt-sign"] == [(50, 72.0), (10, 72.0)]


def test_a_mask_looks_alike_in_all_panels_and_lines_across_do_not() -> None:
    both = {"mpt-sign": [70.0], "snip + bihalf": [60.0], "snip + dense": [61.0], "random + dense": [62.0]}
    more = [{"model": "conv2", "data": "digits", "prune_rate": 0.0, "seed": 0, "test_top1": 90.0, "mask": ""}]
    parts = [
        frame(both),
        *(ticket_comparison.with_tickets([{**more[0], "method": name}]) for name in ("sign", "bihalf")),
    ]
    panels = ticket_comparison.draw(pd.concat(parts, ignore_index=True)).axes
    lines = {handle.get_label(): handle for panel in panels for handle in panel.get_legend_handles_labels()[0]}
    looks = {label: _look(handle) for label, handle in lines.items()}
    assert looks["snip + bihalf"] == looks["snip + dense"]
    others = [look for label, look in looks.items() if label != "snip + dense"]
    assert len(set(others)) == len(others)


def _look(handle: Any) -> tuple[Any, ...]:
    line = handle if isinstance(handle, Line2D) else handle.lines[0]
    return line.get_color(), line.get_marker(), str(line.get_linestyle())


def test_what_is_not_pruned_is_no_rate() -> None:
    with one_line_error("rates 0: what is not pruned is trained in any case"):
        TicketComparison(rates="0,0.5").runs()
    runs = TicketComparison(device="cpu", threads=1, trials=1, rates="0.5", masks=["none"], methods=["sign"]).runs()
    assert [run.mask for run in runs] == [""]


def test_it_leaves_a_table_a_figure_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    options: dict[str, Any] = {"epochs": 1, "trials": 1, "rates": "0.8", "width": 0.1, "device": "cpu", "threads": 1}
    TicketComparison(out=str(tmp_path / "out"), jobs=1, masks=["random"], **options).run()
    table = pd.read_csv(tmp_path / "out" / "ticket_comparison.csv")
    redrawn = {f"iterand + {method}" for method in ("mpt-sign", "mpt-bihalf", "mpt-balanced")}
    assert set(table["ticket"]) == {*ticket_comparison.METHODS, "random + bihalf", "random + dense", *redrawn}
    assert (tmp_path / "out" / "ticket_comparison.png").stat().st_size > 10_000
    assert "difference is from mpt-sign" in capsys.readouterr().out


def test_a_run_is_told_from_its_mask() -> None:
    run = Run(method="bihalf", mask="snip", prune_rate=0.9)
    assert run.name.startswith("conv2-digits-bihalf-pruned0.9-seed0-mask=snip")

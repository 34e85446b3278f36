from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from mpt_bihalf.methods import METHODS
from mpt_bihalf.report import draw_sweep, save_figure

Trials = Callable[..., list[dict[str, Any]]]


def curves(figure: Figure, panel: int = 0) -> dict[str, ErrorbarContainer]:
    return {c.get_label(): c for c in figure.axes[panel].containers if isinstance(c, ErrorbarContainer)}


def horizontals(figure: Figure) -> dict[str, float]:
    inside = [line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): line.get_ydata()[0] for line in inside if len(set(line.get_ydata())) == 1}


def test_axes_are_labelled_with_units(sweep: list[dict[str, Any]]) -> None:
    (panel,) = draw_sweep(sweep).axes
    assert panel.get_xlabel() == "weights pruned (%)"
    assert panel.get_ylabel() == "test top-1 accuracy (%)"
    assert panel.get_title() == "conv2, digits"


def test_each_pruned_method_is_one_line_of_means_against_percent_pruned(sweep: list[dict[str, Any]]) -> None:
    found = curves(draw_sweep(sweep))
    assert set(found) == {"mpt-sign", "mpt-bihalf"}
    assert found["mpt-sign"].lines[0].get_xydata().tolist() == pytest.approx(np.array([[10, 53], [50, 61]]))
    assert found["mpt-bihalf"].lines[0].get_xydata().tolist() == pytest.approx(np.array([[10, 212 / 3], [50, 55.5]]))


def test_error_bars_are_the_sample_standard_deviations(sweep: list[dict[str, Any]]) -> None:
    (bars,) = curves(draw_sweep(sweep))["mpt-sign"].lines[2]
    for segment, trials in zip(bars.get_segments(), ([50, 52, 57], [60, 61, 62]), strict=True):
        mean, std = np.mean(trials), np.std(trials, ddof=1)
        assert sorted(segment[:, 1]) == pytest.approx([mean - std, mean + std])


def test_unpruned_methods_are_horizontal_lines_in_a_band_of_a_standard_deviation(sweep: list[dict[str, Any]]) -> None:
    figure = draw_sweep(sweep)
    assert horizontals(figure) == pytest.approx({"sign (unpruned)": 67, "bihalf (unpruned)": 81})
    bands = [patch.get_path().get_extents(patch.get_patch_transform()) for patch in figure.axes[0].patches]
    expected = [
        (np.mean(values) - np.std(values, ddof=1), np.mean(values) + np.std(values, ddof=1))
        for values in ([64, 66, 71], [80, 80, 83])
    ]
    assert sorted((band.ymin, band.ymax) for band in bands) == pytest.approx(np.array(sorted(expected)))


def test_the_legend_names_every_method(sweep: list[dict[str, Any]]) -> None:
    texts = {text.get_text() for text in draw_sweep(sweep).axes[0].get_legend().get_texts()}
    assert texts == {"mpt-sign", "mpt-bihalf", "sign (unpruned)", "bihalf (unpruned)"}


def test_every_method_has_a_colour_of_its_own(trials: Trials) -> None:
    rates = {name: 0.0 if method.mask is None else 0.5 for name, method in METHODS.items()}
    figure = draw_sweep([record for name, rate in rates.items() for record in trials(name, rate, [50.0, 51.0])])
    pruned = [to_hex(curve.lines[0].get_color()) for curve in curves(figure).values()]
    unpruned = [to_hex(line.get_color()) for line in figure.axes[0].lines if "unpruned" in str(line.get_label())]
    assert len(set(pruned + unpruned)) == len(METHODS)


def test_each_network_and_setting_has_a_panel(trials: Trials) -> None:
    records = [
        record
        for model in ("conv2", "conv4")
        for lr in (0.1, 0.05)
        for record in trials("mpt-sign", 0.5, [50.0, 51.0], model=model, lr=lr)
    ]
    figure = draw_sweep(records)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == [f"{model}, digits, lr {lr}" for model in ("conv2", "conv4") for lr in (0.1, 0.05)]


def test_the_number_of_trials_is_told(sweep: list[dict[str, Any]], trials: Trials) -> None:
    assert "3 trials" in draw_sweep(sweep).get_supxlabel()
    assert "trials" not in draw_sweep(trials("mpt-sign", 0.5, [50.0])).get_supxlabel()


def test_a_sweep_that_diverged_wholly_is_drawn_too(trials: Trials, tmp_path: Path) -> None:
    figure = draw_sweep([*trials("mpt-sign", 0.5, [None, None]), *trials("sign", 0.0, [None])])
    assert all(path.exists() for path in save_figure(figure, tmp_path / "figure"))


def test_a_figure_is_saved_as_png_and_pdf(sweep: list[dict[str, Any]], tmp_path: Path) -> None:
    png, pdf = save_figure(draw_sweep(sweep), tmp_path / "figure")
    assert (png, pdf) == (tmp_path / "figure.png", tmp_path / "figure.pdf")
    with Image.open(png) as image:
        image.load()
        assert min(image.size) > 300
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert pdf.read_bytes().rstrip().endswith(b"%%EOF")
    assert sorted(tmp_path.iterdir()) == [pdf, png]


def test_the_same_records_give_the_same_files(sweep: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first = save_figure(draw_sweep(sweep), tmp_path / "figure")
    again = save_figure(draw_sweep(sweep), tmp_path / "again" / "figure")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_methods_of_ones_own_look_like_no_other_in_the_figure(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ("mine", "mpt-sign", "yours", "mpt-balanced")
    for name in ("mine", "yours"):
        monkeypatch.setitem(METHODS, name, replace(METHODS["mpt-sign"], name=name))
    rows = [row for method in methods for rate in (0.1, 0.5) for row in trials(method, rate, [50.0, 60.0])]
    (panel,) = draw_sweep(rows).axes
    looks = {(line.get_color(), line.get_marker()) for line in panel.lines if line.get_marker() in tuple("osD^vP*X<>")}
    assert len(looks) == len(methods)

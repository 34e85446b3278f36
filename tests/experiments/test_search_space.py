from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.contour import ContourSet

from mpt_bihalf.experiments import search_space
from mpt_bihalf.experiments.search_space import SearchSpace, binary_weights, enumerate_search_space, grid_axis
from mpt_bihalf.report.figures import COLOURS, save_figure

OPTIONS: list[str] = []

Units = tuple[tuple[int, int, int, int], ...]
Classes = tuple[int, ...]


@pytest.fixture(scope="module")
def paper() -> SearchSpace:
    return enumerate_search_space()


@pytest.fixture(scope="module")
def coarse() -> SearchSpace:
    return enumerate_search_space(step=1, extent=5)


@cache
def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def classes_of(units: Units, axis: list[float]) -> Classes:
    """The rounded output at each point of the grid, in plain Python; the second input is the slow one."""
    return tuple(
        round(sigmoid(math.fsum(v * sigmoid(w1 * x1 + w2 * x2 + b) for w1, w2, b, v in units)))
        for x2, x1 in product(axis, repeat=2)
    )


def complement(classes: Classes) -> Classes:
    return tuple(1 - c for c in classes)


def as_units(weights: np.ndarray) -> Units:
    return tuple(tuple(int(weight) for weight in unit) for unit in weights)  # type: ignore[misc]


def test_4096_combinations_have_76_distinct_boundaries(paper: SearchSpace) -> None:
    assert len({as_units(weights) for weights in paper.weights}) == 4096
    assert set(paper.boundary.tolist()) == {search_space.CONSTANT, *range(76)}
    assert paper.boundaries == 76
    assert len(paper.axis) == 250


def test_the_924_combinations_with_equal_bits_have_66(paper: SearchSpace) -> None:
    equal = paper.weights.reshape(4096, 12).sum(1) == 0
    assert equal.sum() == 924
    assert len(set(paper.boundary[equal].tolist()) - {search_space.CONSTANT}) == 66
    assert paper.reached[search_space.EQUAL].sum() == 66


def test_combinations_are_binomial_in_the_number_of_negatives(paper: SearchSpace) -> None:
    assert paper.combinations.tolist() == [comb(12, negatives) for negatives in range(13)]


def test_boundaries_are_told_for_each_number_of_negatives(paper: SearchSpace) -> None:
    found: list[set[int]] = [set() for _ in range(13)]
    for weights, boundary in zip(paper.weights.reshape(4096, 12).tolist(), paper.boundary.tolist(), strict=True):
        found[weights.count(-1)] |= {boundary} - {search_space.CONSTANT}
    assert [set(np.flatnonzero(row)) for row in paper.reached] == found


def test_no_other_number_of_negatives_has_as_many_boundaries(paper: SearchSpace) -> None:
    counts = paper.reached.sum(1).tolist()
    assert [negatives for negatives, count in enumerate(counts) if count == max(counts)] == [6]


def test_the_count_is_that_of_plain_python_on_a_coarse_grid(coarse: SearchSpace) -> None:
    axis = [float(i) for i in range(-5, 5)]
    place: dict[Classes, int] = {}
    boundaries: list[int] = []
    for weights in product((1, -1), repeat=12):
        classes = classes_of(tuple(weights[i : i + 4] for i in (0, 4, 8)), axis)
        if len(set(classes)) == 1:
            boundaries.append(search_space.CONSTANT)
        elif complement(classes) in place:
            boundaries.append(place[complement(classes)])
        else:
            boundaries.append(place.setdefault(classes, len(place)))
    assert coarse.boundary.tolist() == boundaries
    assert coarse.boundaries == len(place) > 50


def test_boundaries_part_the_rounded_outputs_of_randomly_chosen_networks() -> None:
    space = enumerate_search_space(step="0.3", extent=4)
    axis = space.axis.tolist()
    draw = random.Random(0)
    for combination in draw.sample(range(4096), 80):
        classes = classes_of(as_units(space.weights[combination]), axis)
        boundary = space.boundary[combination]
        if boundary == search_space.CONSTANT:
            assert len(set(classes)) == 1
        else:
            drawn = tuple((space.margin(boundary) > 0).ravel().astype(int).tolist())
            assert drawn in (classes, complement(classes))


def test_a_function_and_its_complement_have_one_boundary(paper: SearchSpace) -> None:
    place = {as_units(weights): i for i, weights in enumerate(paper.weights)}
    other = [place[as_units(weights)] for weights in paper.weights * np.array([1, 1, 1, -1])]
    assert np.array_equal(paper.boundary, paper.boundary[other])
    maps = [paper.margin(boundary) > 0 for boundary in range(76)]
    assert len({side.tobytes() for classes in maps for side in (classes, ~classes)}) == 2 * 76


def test_the_order_of_the_hidden_units_does_not_matter(paper: SearchSpace) -> None:
    place = {as_units(weights): i for i, weights in enumerate(paper.weights)}
    other = [place[as_units(weights)] for weights in paper.weights[:, [2, 0, 1]]]
    assert np.array_equal(paper.boundary, paper.boundary[other])


def test_constant_functions_are_left_out(paper: SearchSpace) -> None:
    for boundary in range(76):
        assert paper.margin(boundary).min() < 0 < paper.margin(boundary).max()
    same_sign = np.abs(paper.weights[:, :, 3].sum(1)) == 3  # a sum of sigmoids never changes sign
    assert (paper.boundary[same_sign] == search_space.CONSTANT).all()


@pytest.mark.parametrize(("step", "extent"), [(0.02, 5), (0.05, 5), (0.04, 8)])
def test_the_counts_do_not_hang_on_the_grid(step: float, extent: float) -> None:
    space = enumerate_search_space(step, extent)
    assert (space.boundaries, space.reached[search_space.EQUAL].sum()) == (76, 66)


def test_a_plane_too_small_for_any_boundary_has_none() -> None:
    space = enumerate_search_space(step=0.001, extent=0.01)
    assert space.boundaries == 0
    assert space.reached.shape == (13, 0)
    assert (space.boundary == search_space.CONSTANT).all()


def test_the_grid_is_half_open() -> None:
    axis = grid_axis(0.04, 5)
    assert (len(axis), axis[0], axis[-1]) == (250, -5, 4.96)
    assert grid_axis(0.3, 0.5).tolist() == pytest.approx([-0.5, -0.2, 0.1, 0.4])


def test_the_grid_counts_decimals_as_written() -> None:
    assert len(grid_axis(0.1, 0.3)) == 6  # in float64, 0.6 / 0.1 is below 6 and 2 * 0.3 / 0.1 is not
    for tenths in range(2, 100):
        assert len(grid_axis(0.1, tenths / 10)) == 2 * tenths


@pytest.mark.parametrize(
    ("step", "extent", "told"),
    [
        (0, 5, "step"),
        (-0.04, 5, "step"),
        (math.nan, 5, "step"),
        (math.inf, 5, "step"),
        (10, 5, "step must be below 10"),
        (0.004, 5, "4,000,000 points: at extent 5 take 0.005"),
        (5e-324, 5, "4,000,000"),
        (0.04, 0, "extent"),
        (0.04, -5, "extent"),
        (0.04, math.nan, "extent"),
        (0.04, math.inf, "extent"),
        (0.04, 16.1, "extent"),
    ],
)
def test_a_bad_grid_is_refused_by_name(step: float, extent: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        grid_axis(step, extent)


def test_the_finest_grid_has_four_million_points() -> None:
    assert len(grid_axis(0.005, 5)) == 2000


def test_no_sum_is_so_near_zero_that_rounding_could_decide_the_class() -> None:
    for extent, step in ((5, 0.25), (16, 0.5)):
        axis = grid_axis(step, extent)
        inputs = np.array([(x1, x2, 1.0) for x2, x1 in product(axis, repeat=2)]).astype(np.longdouble)
        for weights in binary_weights()[::7]:
            exact = (weights[:, 3] / (1 + np.exp(-(inputs @ weights[:, :3].T.astype(np.longdouble))))).sum(1)
            assert np.abs(exact).min() > 1e-15


def space_with(reached: dict[int, list[int]]) -> SearchSpace:
    """A search space where the combinations with a number of -1s draw just these boundaries."""
    weights = binary_weights()
    negatives = (weights < 0).sum((1, 2))
    boundary = np.full(len(weights), search_space.CONSTANT)
    for number, places in reached.items():
        boundary[negatives == number] = np.resize(places, (negatives == number).sum())
    return SearchSpace(np.array([-1.0, 0.0]), weights, boundary)


def test_the_finding_is_reversed_with_the_numbers() -> None:
    finding = search_space.finding_of(space_with({5: [0, 1, 2, 3], 6: [0], 8: [4, 3, 2, 1]}))
    assert finding == (
        "equal bits keep 1 of 5 distinct decision boundaries (20 %), no more than half, with 924 of 4,096 combinations "
        "(23 %); the most, 4, come with 5 or 8 -1s"
    )


def test_the_finding_tells_who_keeps_as_many() -> None:
    finding = search_space.finding_of(space_with({4: [0, 1], 6: [1, 2], 7: [0]}))
    assert finding.startswith("equal bits keep 2 of 3 distinct decision boundaries (67 %), most of them")
    assert finding.endswith("; 4 -1s keep as many")


def test_half_of_the_boundaries_is_not_most() -> None:
    assert "1 of 2 distinct decision boundaries (50 %), no more than half" in search_space.finding_of(
        space_with({5: [1], 6: [0]})
    )


def test_no_boundary_at_all_is_told() -> None:
    assert search_space.finding_of(space_with({})) == (
        "no combination of weights draws a decision boundary on this grid"
    )


def test_a_row_for_each_number_of_negatives() -> None:
    rows = search_space.rows_of(space_with({5: [0, 1], 6: [1, 2, 4], 11: [3]}))
    assert [row["negatives"] for row in rows] == list(range(13))
    assert [row["combinations"] for row in rows] == [1, 12, 66, 220, 495, 792, 924, 792, 495, 220, 66, 12, 1]
    assert [row["boundaries"] for row in rows] == [0, 0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 1, 0]
    assert [row["boundaries_so_far"] for row in rows] == [0, 0, 0, 0, 0, 2, 4, 4, 4, 4, 4, 5, 5]


def test_all_boundaries_are_there_at_the_last_row(paper: SearchSpace) -> None:
    assert search_space.rows_of(paper)[-1]["boundaries_so_far"] == 76


def test_the_curves_are_shares_with_their_counts_beside_them(paper: SearchSpace) -> None:
    left, _ = search_space.draw(paper).axes
    boundaries, combinations = (np.asarray(line.get_ydata()) for line in left.lines[:2])
    assert boundaries == pytest.approx(100 * paper.reached.sum(1) / 76)
    assert combinations == pytest.approx(100 * paper.combinations / 4096)
    written = [text.get_text() for text in left.texts]
    assert "924" in written and "66" in written


def test_each_boundary_is_a_contour_in_the_colour_of_its_group(paper: SearchSpace) -> None:
    _, right = search_space.draw(paper).axes
    contours = [drawn for drawn in right.collections if isinstance(drawn, ContourSet)]
    assert all(len(contour.get_paths()[0].vertices) > 1 for contour in contours)
    for colour, count in ((COLOURS[0], 66), (COLOURS[1], 10)):
        assert sum(same_color(contour.get_edgecolor()[0], colour) for contour in contours) == count


def test_every_point_of_a_contour_is_where_the_network_hesitates(paper: SearchSpace) -> None:
    _, right = search_space.draw(paper).axes
    contours = [drawn for drawn in right.collections if isinstance(drawn, ContourSet)]
    equal = paper.reached[6]
    for boundary, contour in zip([*np.flatnonzero(equal), *np.flatnonzero(~equal)], contours, strict=True):
        units = paper.weights[list(paper.boundary).index(boundary)]
        inputs = np.insert(contour.get_paths()[0].vertices, 2, 1, axis=1)
        sums = (1 / (1 + np.exp(-inputs @ units[:, :3].T))) @ units[:, 3]
        assert np.abs(sums).max() < 1e-3


def test_a_search_space_without_boundaries_is_drawn_too(tmp_path: Path) -> None:
    assert all(path.exists() for path in save_figure(search_space.draw(space_with({})), tmp_path / "figure"))


def test_the_command_counts_what_the_paper_counts(done: Any) -> None:
    assert "keep 66 of 76" in done.measured() and "924 of 4,096" in done.measured()
    rows = done.table()
    assert rows.loc[6, ["negatives", "combinations", "boundaries"]].tolist() == [6, 924, 66]
    for tag, points in done.curves().items():
        assert points == list(zip(rows["negatives"], rows[tag], strict=True))
    assert done.printed.rstrip().endswith(str(done.out / "curves"))  # there are no runs to show beside them


def test_the_grid_is_that_of_the_options(
    tmp_path: Path, experiment: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("search_space", "--step", "0.5", "--extent", "0.5", "--out", str(tmp_path)) == 0
    assert "of 76" not in capsys.readouterr().out.split("paper:")[0]


@pytest.mark.parametrize(
    "bad",
    ["--step=-1", "--step=nan", "--step=inf", "--step=0.001", "--step=10", "--step=x", "--step=", "--extent=0",
     "--extent=-5", "--extent=nan", "--extent=1e999", "--out=", "--stpe=1"],
)  # fmt: skip
def test_a_bad_option_ends_in_one_line_and_changes_nothing(bad: str, refused: Callable[..., str]) -> None:
    assert refused(bad)

from __future__ import annotations

import math
import random
from functools import cache
from itertools import product
from math import comb

import numpy as np
import pytest

from mpt_bihalf.search_space import CONSTANT, EQUAL, SearchSpace, binary_weights, enumerate_search_space, grid_axis

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
    assert set(paper.boundary.tolist()) == {CONSTANT, *range(76)}
    assert paper.boundaries == 76
    assert len(paper.axis) == 250


def test_the_924_combinations_with_equal_bits_have_66(paper: SearchSpace) -> None:
    equal = paper.weights.reshape(4096, 12).sum(1) == 0
    assert equal.sum() == 924
    assert len(set(paper.boundary[equal].tolist()) - {CONSTANT}) == 66
    assert paper.reached[EQUAL].sum() == 66


def test_combinations_are_binomial_in_the_number_of_negatives(paper: SearchSpace) -> None:
    assert paper.combinations.tolist() == [comb(12, negatives) for negatives in range(13)]


def test_boundaries_are_told_for_each_number_of_negatives(paper: SearchSpace) -> None:
    found: list[set[int]] = [set() for _ in range(13)]
    for weights, boundary in zip(paper.weights.reshape(4096, 12).tolist(), paper.boundary.tolist(), strict=True):
        found[weights.count(-1)] |= {boundary} - {CONSTANT}
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
            boundaries.append(CONSTANT)
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
        if boundary == CONSTANT:
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
    assert (paper.boundary[same_sign] == CONSTANT).all()


@pytest.mark.parametrize(("step", "extent"), [(0.02, 5), (0.05, 5), (0.04, 8)])
def test_the_counts_do_not_hang_on_the_grid(step: float, extent: float) -> None:
    space = enumerate_search_space(step, extent)
    assert (space.boundaries, space.reached[EQUAL].sum()) == (76, 66)


def test_a_plane_too_small_for_any_boundary_has_none() -> None:
    space = enumerate_search_space(step=0.001, extent=0.01)
    assert space.boundaries == 0
    assert space.reached.shape == (13, 0)
    assert (space.boundary == CONSTANT).all()


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

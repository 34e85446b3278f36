from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.contour import ContourSet

from mpt_bihalf.report.figures import COLOURS, save_figure
from mpt_bihalf.report.search_space import CLAIM, draw_search_space, search_space_finding, search_space_rows
from mpt_bihalf.search_space import CONSTANT, SearchSpace, binary_weights, enumerate_search_space


def space_with(reached: dict[int, list[int]]) -> SearchSpace:
    """A search space where the combinations with a number of -1s draw just these boundaries."""
    weights = binary_weights()
    negatives = (weights < 0).sum((1, 2))
    boundary = np.full(len(weights), CONSTANT)
    for number, places in reached.items():
        boundary[negatives == number] = np.resize(places, (negatives == number).sum())
    return SearchSpace(np.array([-1.0, 0.0]), weights, boundary)


@pytest.fixture(scope="module")
def paper() -> SearchSpace:
    return enumerate_search_space()


def test_the_finding_is_that_of_the_paper(paper: SearchSpace) -> None:
    assert search_space_finding(paper) == (
        "equal bits keep 66 of 76 distinct decision boundaries (87 %), most of them, with 924 of 4,096 combinations "
        "(23 %); no other number of -1s keeps as many"
    )


def test_the_finding_is_reversed_with_the_numbers() -> None:
    finding = search_space_finding(space_with({5: [0, 1, 2, 3], 6: [0], 8: [4, 3, 2, 1]}))
    assert finding == (
        "equal bits keep 1 of 5 distinct decision boundaries (20 %), no more than half, with 924 of 4,096 combinations "
        "(23 %); the most, 4, come with 5 or 8 -1s"
    )


def test_the_finding_tells_who_keeps_as_many() -> None:
    finding = search_space_finding(space_with({4: [0, 1], 6: [1, 2], 7: [0]}))
    assert finding.startswith("equal bits keep 2 of 3 distinct decision boundaries (67 %), most of them")
    assert finding.endswith("; 4 -1s keep as many")


def test_half_of_the_boundaries_is_not_most() -> None:
    assert "1 of 2 distinct decision boundaries (50 %), no more than half" in search_space_finding(
        space_with({5: [1], 6: [0]})
    )


def test_no_boundary_at_all_is_told() -> None:
    assert search_space_finding(space_with({})) == ("no combination of weights draws a decision boundary on this grid")


def test_the_claim_has_the_numbers_of_the_paper() -> None:
    for number in ("4,096", "76", "924", "66", "quarter"):
        assert number in CLAIM
    assert "\n" not in CLAIM


def test_a_row_for_each_number_of_negatives() -> None:
    rows = search_space_rows(space_with({5: [0, 1], 6: [1, 2, 4], 11: [3]}))
    assert [row["negatives"] for row in rows] == list(range(13))
    assert [row["combinations"] for row in rows] == [1, 12, 66, 220, 495, 792, 924, 792, 495, 220, 66, 12, 1]
    assert [row["boundaries"] for row in rows] == [0, 0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 1, 0]
    assert [row["boundaries_so_far"] for row in rows] == [0, 0, 0, 0, 0, 2, 4, 4, 4, 4, 4, 5, 5]


def test_all_boundaries_are_there_at_the_last_row(paper: SearchSpace) -> None:
    assert search_space_rows(paper)[-1]["boundaries_so_far"] == 76


def test_both_panels_have_labels_titles_and_a_legend(paper: SearchSpace) -> None:
    left, right = draw_search_space(paper).axes
    assert left.get_xlabel() == "number of -1s among the 12 weights"
    assert left.get_ylabel() == "share of all (%)"
    assert (right.get_xlabel(), right.get_ylabel()) == ("first input", "second input")
    assert left.get_title() and right.get_title()
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "distinct boundaries (of 76)",
        "combinations of weights (of 4,096)",
        "equal bits",
    ]
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "with equal bits: 66",
        "only with unequal bits: 10",
    ]


def test_the_curves_are_shares_with_their_counts_beside_them(paper: SearchSpace) -> None:
    left, _ = draw_search_space(paper).axes
    boundaries, combinations = (np.asarray(line.get_ydata()) for line in left.lines[:2])
    assert boundaries == pytest.approx(100 * paper.reached.sum(1) / 76)
    assert combinations == pytest.approx(100 * paper.combinations / 4096)
    written = [text.get_text() for text in left.texts]
    assert "924" in written and "66" in written


def test_each_boundary_is_a_contour_in_the_colour_of_its_group(paper: SearchSpace) -> None:
    _, right = draw_search_space(paper).axes
    contours = [drawn for drawn in right.collections if isinstance(drawn, ContourSet)]
    assert all(len(contour.get_paths()[0].vertices) > 1 for contour in contours)
    for colour, count in ((COLOURS[0], 66), (COLOURS[1], 10)):
        assert sum(same_color(contour.get_edgecolor()[0], colour) for contour in contours) == count


def test_every_point_of_a_contour_is_where_the_network_hesitates(paper: SearchSpace) -> None:
    _, right = draw_search_space(paper).axes
    contours = [drawn for drawn in right.collections if isinstance(drawn, ContourSet)]
    equal = paper.reached[6]
    for boundary, contour in zip([*np.flatnonzero(equal), *np.flatnonzero(~equal)], contours, strict=True):
        units = paper.weights[list(paper.boundary).index(boundary)]
        inputs = np.insert(contour.get_paths()[0].vertices, 2, 1, axis=1)
        sums = (1 / (1 + np.exp(-inputs @ units[:, :3].T))) @ units[:, 3]
        assert np.abs(sums).max() < 1e-3


def test_a_search_space_without_boundaries_is_drawn_too(tmp_path: Path) -> None:
    assert all(path.exists() for path in save_figure(draw_search_space(space_with({})), tmp_path / "figure"))

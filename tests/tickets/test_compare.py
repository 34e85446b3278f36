from __future__ import annotations

import pytest
import torch
from scipy.stats import hypergeom
from torch import Tensor

from mpt_bihalf.tickets import BinaryLayer, Ticket
from mpt_bihalf.tickets.compare import density_table, overlap, overlap_table, overlaps
from tests.reference import one_line_error

ONE = torch.ones(())


def layer(*values: int) -> BinaryLayer:
    return BinaryLayer(torch.tensor(values, dtype=torch.int8), ONE)


def drawn(n: int, kept: int, seed: int) -> BinaryLayer:
    g = torch.Generator().manual_seed(seed)
    binary = torch.zeros(n, dtype=torch.int8)
    signs: Tensor = 2 * torch.randint(2, (kept,), generator=g) - 1
    binary[torch.randperm(n, generator=g)[:kept]] = signs.to(torch.int8)
    return BinaryLayer(binary, ONE)


def test_overlap_counts_places_and_signs() -> None:
    found = overlap(layer(1, -1, 0, 0, 1, -1, 1), layer(1, 1, -1, 0, 0, -1, 1))
    assert (found.both, found.either, found.agreeing) == (4, 6, 3)
    assert found.agreeing_expected == pytest.approx(4 * (3 / 5 * 3 / 5 + 2 / 5 * 2 / 5))


def test_chance_is_the_hypergeometric_distribution() -> None:
    found = overlap(drawn(50, 20, 0), drawn(50, 7, 1))
    chance = hypergeom(50, 20, 7)
    assert found.expected == pytest.approx(chance.mean()) and found.variance == pytest.approx(chance.var())


def test_independent_masks_overlap_as_by_chance_and_equal_ones_do_not() -> None:
    zs = [overlap(drawn(2000, 400, seed), drawn(2000, 600, seed + 100)).z for seed in range(60)]
    assert abs(sum(zs) / 60) < 0.5 and 0.7 < torch.tensor(zs).std() < 1.3
    assert overlap(drawn(2000, 400, 0), drawn(2000, 400, 0)).z > 30


def test_layers_add_up_and_others_are_left_out() -> None:
    first = Ticket({"a": drawn(100, 30, 0), "b": drawn(60, 30, 1), "c": drawn(9, 3, 2)}, {})
    second = Ticket({"a": drawn(100, 50, 3), "b": drawn(60, 10, 4), "c": drawn(8, 3, 5)}, {})
    found = overlaps(first, second)
    assert list(found) == ["a", "b"]
    table = overlap_table("A and B", first, second)
    assert [row[0] for row in table.rows] == ["a", "b", "all"]
    assert table.rows[-1][1] == str(found["a"].both + found["b"].both)
    assert table.rows[-1][2] == f"{100 * 0.3 * 0.5 + 60 * 0.5 / 6:.0f}"
    density = density_table({"A": first, "B": second})
    assert density.rows[0] == ["a", "30.00%", "50.00%"] and density.rows[-1] == ["all", "37.28%", "37.50%"]


def test_unpruned_layers_have_no_z_and_strangers_nothing_in_common() -> None:
    assert overlap(layer(1, -1, 1), layer(1, 1, -1)).z != overlap(layer(1, -1, 1), layer(1, 1, -1)).z  # NaN
    with one_line_error("in common"):
        overlaps(Ticket({"a": layer(1, 0)}, {}), Ticket({"b": layer(1, 0)}, {}))

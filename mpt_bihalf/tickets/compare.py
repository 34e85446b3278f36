"""What tickets have in common: their masks and their signs, against chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from ..endings import one_line
from ..report.tables import Table
from .ticket import BinaryLayer, Ticket


@dataclass(frozen=True)
class Overlap:
    """Of two layers of one shape, or of several such pairs together.

    both: weights that both keep. expected, variance: of `both` under two masks of these counts that know nothing of
    each other (hypergeometric). either: weights that one of them keeps. agreeing: of `both`, those with one sign.
    agreeing_expected: of these under independent signs of the shares that the two layers have.
    """

    both: int = 0
    either: int = 0
    expected: float = 0.0
    variance: float = 0.0
    agreeing: int = 0
    agreeing_expected: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def z(self) -> float:
        """By how many standard deviations more are kept by both than by chance; NaN where chance has no choice."""
        return (self.both - self.expected) / sqrt(self.variance) if self.variance > 0 else float("nan")


def overlap(first: BinaryLayer, second: BinaryLayer) -> Overlap:
    """How the masks and signs of two layers of one shape overlap."""
    a, b = first.binary, second.binary
    n, kept_a, kept_b = a.numel(), first.kept, second.kept
    common = (a != 0) & (b != 0)
    both = int(common.sum())
    spread = kept_a * kept_b * (n - kept_a) * (n - kept_b) / (n * n * (n - 1)) if n > 1 else 0.0
    share_a, share_b = first.positive / max(kept_a, 1), second.positive / max(kept_b, 1)
    return Overlap(
        both=both,
        either=kept_a + kept_b - both,
        expected=kept_a * kept_b / max(n, 1),
        variance=spread,
        agreeing=int((a[common] == b[common]).sum()),
        agreeing_expected=both * (share_a * share_b + (1 - share_a) * (1 - share_b)),
    )


def overlaps(first: Ticket, second: Ticket) -> dict[str, Overlap]:
    """The overlap of each layer that both have in one shape. Raises ValueError where there is none."""
    common = {
        name: overlap(layer, second.layers[name])
        for name, layer in first.layers.items()
        if name in second.layers and second.layers[name].binary.shape == layer.binary.shape
    }
    if not common:
        raise ValueError("the tickets have no binary layer in common: they must be of one network")
    return common


def overlap_table(title: str, first: Ticket, second: Ticket) -> Table:
    """How two tickets overlap, layer by layer and in all."""
    found = overlaps(first, second)
    found["all"] = sum(found.values(), Overlap())
    head = ["layer", "kept by both", "by chance", "z", "of kept by either", "same sign", "by chance"]
    return Table(title, head, [[one_line(name), *_cells(value)] for name, value in found.items()])


def density_table(tickets: dict[str, Ticket]) -> Table:
    """The share of weights that each ticket keeps, layer by layer and in all."""
    names = list(dict.fromkeys(name for ticket in tickets.values() for name in ticket.layers))
    rows = [[one_line(name), *(_density([ticket.layers.get(name)]) for ticket in tickets.values())] for name in names]
    rows.append(["all", *(_density(list(ticket.layers.values())) for ticket in tickets.values())])
    return Table("share of weights kept", ["layer", *tickets], rows)


def _density(layers: Sequence[BinaryLayer | None]) -> str:
    there = [layer for layer in layers if layer is not None]
    weights = sum(layer.binary.numel() for layer in there)
    return f"{sum(layer.kept for layer in there) / weights:.2%}" if weights else ""


def _cells(value: Overlap) -> list[str]:
    z = "" if value.z != value.z else f"{value.z:+.1f}"
    both = max(value.both, 1)
    return [
        f"{value.both:,}",
        f"{value.expected:,.0f}",
        z,
        f"{value.both / max(value.either, 1):.1%}",
        f"{value.agreeing / both:.1%}" if value.both else "",
        f"{value.agreeing_expected / both:.1%}" if value.both else "",
    ]

"""Where the bytes of a ticket's file are."""

from __future__ import annotations

from pathlib import Path

from ..endings import one_line
from ..report.tables import Table
from .coding import bound
from .file import read_ticket, tensor_sizes


def size_table(path: Path | str) -> Table:
    """Bytes of each layer in a ticket's file beside those of its float32 weights and the Shannon bound.

    A ticket of the form `seed` has no signs in it, and may lie below the bound.
    """
    ticket, stored = read_ticket(path), tensor_sizes(path)
    head = ["layer", "weights", "kept", "+1 of kept", "bits a weight", "bytes", "bound", "float32", "times smaller"]
    rows, bounds = [], 0.0
    for name, layer in ticket.layers.items():
        weights, kept, size = layer.binary.numel(), layer.kept, stored[f"bits/{name}"] + stored[f"alpha/{name}"]
        # Of the mask, and of the signs of what it keeps.
        least = (bound(weights, kept) + bound(kept, layer.positive)) / 8
        bounds += least
        rows.append(
            [
                one_line(name),
                f"{weights:,}",
                f"{kept / max(weights, 1):.1%}",
                f"{layer.positive / max(kept, 1):.1%}",
                f"{8 * size / max(weights, 1):.3f}",
                *_sizes(size, least, 4 * weights),
            ]
        )
    for name, value in ticket.rest.items():
        size = stored[f"rest/{name}"]
        rows.append([one_line(name), f"{value.numel():,}", "", "", "", *_sizes(size, None, size)])
    state = ticket.shapes().values()
    whole = sum(shape.numel() * dtype.itemsize for shape, dtype in state)
    total = Path(path).stat().st_size
    rows.append(["header", "", "", "", "", f"{total - sum(stored.values()):,}", "", "", ""])
    everything = sum(shape.numel() for shape, _ in state)
    rows.append(["all", f"{everything:,}", "", "", f"{8 * total / everything:.3f}", *_sizes(total, bounds, whole)])
    return Table(f"{Path(path).name}: sizes in bytes", head, rows)


def _sizes(size: int, least: float | None, plain: int) -> list[str]:
    return [f"{size:,}", "" if least is None else f"{least:,.0f}", f"{plain:,}", f"{plain / max(size, 1):.1f}"]

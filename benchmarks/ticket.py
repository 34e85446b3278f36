"""What a ticket costs to use: its size, loading it, and inference against the dense float32 network on the CPU.

Networks are as drawn, under mpt-bihalf: times depend on shapes and counts, not on what was learned. The dense network
is the plain module with real-valued weights, its file that of torch.save of its state.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import in_turn, median_ratio, show
from torch import Tensor, nn

from mpt_bihalf import bake_weights, binarize_weights, create_model
from mpt_bihalf.commandline import parse
from mpt_bihalf.endings import run_command
from mpt_bihalf.models import find_network
from mpt_bihalf.tickets import fold, load_ticket, save_ticket


@dataclass(frozen=True, kw_only=True)
class TicketCost:
    """Which tickets to measure."""

    models: list[str] = field(default_factory=lambda: ["conv2", "conv4", "resnet18"])
    """networks"""
    rates: list[float] = field(default_factory=lambda: [0.5, 0.9, 0.99])
    """fractions pruned"""
    batch_size: int = 128
    """images of the larger batch"""
    rounds: int = 11
    """times each is taken, in turn with the others"""
    json: bool = False
    """print JSON"""


def main() -> None:
    options = parse(TicketCost, "File size, load time and inference of tickets against the dense network, A B A B.")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in options.models:
            for rate in options.rates:
                rows.append(measure(name, rate, options, Path(place)))
    show(rows, options.json)


def measure(name: str, rate: float, options: TicketCost, place: Path) -> dict[str, Any]:
    dense = create_model(name, seed=0).eval()
    torch.save(dense.state_dict(), place / "dense.pt")
    binary = create_model(name, seed=0)
    binarize_weights(binary, "mpt-bihalf", rate, skip=find_network(name).skip, seed=0)
    save_ticket(binary, place / "a.ticket", {"name": name})
    baked = bake_weights(binary).eval()
    folded, removed = fold(baked, torch.zeros(2, 3, 32, 32))
    loads = {"dense": partial(load_dense, name, place / "dense.pt"), "ticket": partial(load_ticket, place / "a.ticket")}
    loading = in_turn(loads, options.rounds, warm_up=1)
    sizes = {path: (place / path).stat().st_size for path in ("dense.pt", "a.ticket")}
    row: dict[str, Any] = {
        "model": name,
        "pruned": rate,
        "dense MB": sizes["dense.pt"] / 1e6,
        "ticket MB": sizes["a.ticket"] / 1e6,
        "times smaller": sizes["dense.pt"] / sizes["a.ticket"],
        "load dense ms": 1000 * statistics.median(loading["dense"]),
        "load ticket ms": 1000 * statistics.median(loading["ticket"]),
        "filters removed": removed.dead + removed.unused,
    }
    for count in (1, options.batch_size):
        x = torch.randn(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        networks: dict[str, nn.Module] = {"dense": dense, "baked": baked, "folded": folded}
        tasks: dict[str, Callable[[], Tensor]] = {kind: partial(network, x) for kind, network in networks.items()}
        with torch.inference_mode():
            seconds = in_turn(tasks, options.rounds * (10 if count == 1 else 1), warm_up=3)
        row[f"dense ms, {count}"] = 1000 * statistics.median(seconds["dense"])
        for kind in ("baked", "folded"):
            row[f"{kind} / dense, {count}"] = median_ratio(seconds[kind], seconds["dense"])
    return row


def load_dense(name: str, path: Path) -> nn.Module:
    """The usual way."""
    model = create_model(name, seed=0)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


if __name__ == "__main__":
    run_command(main)

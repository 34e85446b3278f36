"""Peak resident memory of a training of each method against the dense one, in bytes for each masked weight.

Each method trains a few steps in a process of its own; what it needs beyond the dense run is divided by its weights.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass, field

import torch
from measuring import show

from mpt_bihalf import METHODS
from mpt_bihalf.commandline import parse
from mpt_bihalf.devices import keep_freed_memory
from mpt_bihalf.endings import run_command
from mpt_bihalf.training.build import build_network, build_optimizer
from mpt_bihalf.training.config import Run
from mpt_bihalf.training.step import train_step


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What to train."""

    model: str = "conv2"
    """network"""
    methods: list[str] = field(default_factory=lambda: [name for name in METHODS if name != "dense"])
    """methods"""
    prune_rate: float = 0.9
    """fraction pruned"""
    batch_size: int = 128
    """images a step"""
    steps: int = 4
    """steps"""
    runs: int = 5
    """processes for each method, in turn; the median of their peaks counts, as they differ by some 30 MiB"""
    one: str = ""
    """train this method alone, in this process, and print its peak in KiB"""
    json: bool = False
    """print JSON"""


def peak(options: Memory) -> int:
    """Train in this process; the peak of its resident memory in KiB."""
    keep_freed_memory()
    run = Run(model=options.model, method=options.one, prune_rate=options.prune_rate)
    model = build_network(run, 10, 3, 32)
    optimizer = build_optimizer(run, model)
    x = torch.randn(options.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (options.batch_size,))
    for _ in range(options.steps):
        train_step(model, optimizer, x, y)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    options = parse(Memory, "Peak resident memory of each method against the dense run.")
    if options.one:
        print(peak(options))
        return
    weights = sum(p.numel() for p in build_network(Run(model=options.model, method="dense"), 10, 3, 32).parameters())
    settings = [
        f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("model", "prune_rate", "batch_size")
    ]

    peaks: dict[str, list[int]] = {method: [] for method in ["dense", *options.methods]}
    for _ in range(options.runs):
        for method, found in peaks.items():
            command = [sys.executable, __file__, *settings, f"--steps={options.steps}", f"--one={method}"]
            found.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    median = {method: statistics.median(found) for method, found in peaks.items()}
    rows: list[dict[str, object]] = []
    for method, peak_now in median.items():
        more = 1024 * (peak_now - median["dense"]) / weights
        rows.append({"method": method, "peak, MiB": peak_now / 1024, "bytes more for each weight": more})
    show(rows, options.json)


if __name__ == "__main__":
    run_command(main)

"""Compiled tickets beside torch and ONNX Runtime: milliseconds a batch, and the memory that each takes for a network.

Networks are as drawn, under mpt-bihalf. Memory is how far a process rises at its highest above what it had before it
read the file, the ticket or the float32 network as ONNX; it has run a Conv2 of a twentieth of the width before, so that
the libraries are there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mpt_bihalf import binarize_weights, create_model
from mpt_bihalf.commandline import parse
from mpt_bihalf.endings import run_command, show
from mpt_bihalf.models import find_network
from mpt_bihalf.report.tables import Table
from mpt_bihalf.tickets import Ticket, export_onnx, write_ticket
from mpt_bihalf.tickets.bench import bench_table

PEAK = """
import sys
import numpy as np
kind, small, file, batch, threads, *shape = sys.argv[1:]
if kind == "ticket":
    from mpt_bihalf.tickets import compile_ticket
    made = lambda file: compile_ticket(file, threads=int(threads))
else:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    def made(file):
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"images": x})

def told(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

x = np.random.default_rng(0).standard_normal((int(batch), *map(int, shape)), dtype=np.float32)
made(small)(x)
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")
before = told("VmRSS")
run = made(file)
for _ in range(5):
    run(x)
print((told("VmHWM") - before) / 1024)
"""


@dataclass(frozen=True, kw_only=True)
class CompiledTicketCost:
    """Which networks to measure."""

    models: list[str] = field(default_factory=lambda: ["conv2", "conv4", "conv6", "conv4/clip", "resnet18"])
    """networks; NAME/ESTIMATOR has binary activations"""
    rate: float = 0.9
    """fraction pruned"""
    batches: list[int] = field(default_factory=lambda: [1, 128])
    """images at a time"""
    threads: list[int] = field(default_factory=lambda: [1, 2])
    """threads"""


def main() -> None:
    options = parse(CompiledTicketCost, "Compiled tickets beside torch and ONNX Runtime, A B A B.")
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            ticket = drawn(model, options.rate)
            table = bench_table(ticket, options.batches, options.threads)
            for row in table.rows:
                peaks = [peak(kind, ticket, Path(folder), row[0], row[1]) for kind in ("ticket", "onnx")]
                rows.append([model, *row, *(f"{figure:.0f}" for figure in peaks)])
            head = ["network", *table.head, "ticket MiB", "ONNX Runtime MiB"]
            show(Table("", head, rows[-len(table.rows) :]).text("github"))


def drawn(model: str, rate: float, width: float = 1.0) -> Ticket:
    name, _, activations = model.partition("/")
    architecture: dict[str, Any] = {"name": name, "activations": activations or "real", "width": width}
    network = create_model(**architecture, seed=0)
    binarize_weights(network, "mpt-bihalf", rate, skip=find_network(name).skip, seed=0)
    return Ticket.of(network.eval(), architecture)


def peak(kind: str, ticket: Ticket, folder: Path, batch: str, threads: str) -> float:
    """MiB."""
    files = []
    for name, each in (("small", drawn("conv2", 0.5, width=0.05)), ("large", ticket)):
        files.append(folder / f"{name}.{kind}")
        if kind == "ticket":
            write_ticket(each, files[-1])
        else:
            export_onnx(each.network(), torch.zeros(2, *each.images), files[-1])
    command = [sys.executable, "-c", PEAK, kind, *map(str, files), batch, threads, *map(str, ticket.images)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    run_command(main)

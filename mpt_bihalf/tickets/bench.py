"""How fast a ticket runs on this machine beside torch and ONNX Runtime: what `ticket bench` does."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..report.tables import Table
from .compiled import compiled
from .export import export_onnx
from .ticket import Ticket

LARGEST_BATCH = 65_536
ROUNDS, SECONDS = 5, 0.3  # times that each takes its turn, and how long that is at least


def bench_table(ticket: Ticket, batches: Sequence[int], threads: Sequence[int]) -> Table:
    """Milliseconds a batch, medians over turns, and how many times as fast the compiled ticket is.

    torch: the plain network in the faster of its two layouts. ONNX Runtime: the float32 network on the CPU, where the
    packages for it are installed.
    """
    run, network, shape = compiled(ticket), ticket.network(), ticket.images
    others = ["torch", *(["ONNX Runtime"] if _has_onnx() else [])]
    head = ["batch", "threads", "ticket", *others, *(f"/ {name}" for name in others)]
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for count in threads:
            with _torch_threads(count):
                session = _onnx_session(network, shape, Path(folder), count) if _has_onnx() else None
                for batch in batches:
                    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
                    run.threads = count
                    calls: dict[str, Callable[[], object]] = {"ticket": partial(run, x)}
                    calls |= {f"torch {name}": call for name, call in _torch_calls(network, x).items()}
                    if session is not None:
                        calls["ONNX Runtime"] = partial(session.run, None, {"images": x.numpy()})
                    taken = _taken(calls)
                    taken["torch"] = min(taken["torch as it is"], taken["torch channels last"])
                    figures = [taken[name] for name in ("ticket", *others)]
                    ratios = [f"{taken[name] / taken['ticket']:.1f}" for name in others]
                    rows.append([str(batch), str(count), *(f"{1000 * figure:.3f}" for figure in figures), *ratios])
    title = f"milliseconds a batch, medians of {ROUNDS} turns, and how many times as fast the ticket is"
    return Table(title, head, rows)


def _has_onnx() -> bool:
    return all(find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _torch_calls(network: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    last = deepcopy(network).to(memory_format=torch.channels_last)
    turned = x.contiguous(memory_format=torch.channels_last)
    return {"as it is": partial(network, x), "channels last": partial(last, turned)}


def _onnx_session(network: nn.Module, shape: tuple[int, int, int], folder: Path, threads: int) -> Any:
    import onnxruntime

    file = folder / "network.onnx"
    if not file.exists():
        export_onnx(network, torch.zeros(2, *shape), file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _taken(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each call. In turns, and alone for a while before: threads of others spin on after their work."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            until = time.perf_counter() + SECONDS / 3
            call()
            while time.perf_counter() < until:
                call()
            began, done = time.perf_counter(), 0
            while done == 0 or time.perf_counter() < began + SECONDS:
                call()
                done += 1
            taken[name].append((time.perf_counter() - began) / done)
    return {name: median(figures) for name, figures in taken.items()}

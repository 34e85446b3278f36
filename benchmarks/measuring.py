"""What the benchmarks share: times taken in turn, the machine, a table or JSON."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm


def in_turn(tasks: dict[str, Callable[[], object]], rounds: int, warm_up: int = 8) -> dict[str, list[float]]:
    """Seconds of each task in each round, A B C A B C: what disturbs the machine disturbs all alike.

    The rounds of `warm_up` do not count: a selection finds its bracket in the first steps, and memory comes to rest.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in tqdm(range(-warm_up, rounds), unit="round", leave=False, disable=None):
        for name, task in tasks.items():
            taken = seconds_of(task)
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """The median over the rounds of how many times the reference's seconds it took in the same round."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def against(
    reference: Callable[[], object], tasks: dict[str, Callable[[], object]], rounds: int, warm_up: int = 5
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each task in each round, and the mean of what the reference took just before and just after it.

    R A R B R: what disturbs the machine for a while disturbs both. The rounds of `warm_up` do not count.
    """
    in_turn({"reference": reference, **tasks}, 0, warm_up)
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    beside: dict[str, list[float]] = {name: [] for name in tasks}
    before = seconds_of(reference)
    for _ in tqdm(range(rounds), unit="round", leave=False, disable=None):
        for name, task in tasks.items():
            seconds[name].append(seconds_of(task))
            after = seconds_of(reference)
            beside[name].append((before + after) / 2)
            before = after
    return seconds, beside


def seconds_of(task: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def machine() -> dict[str, Any]:
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """The rows as a table, or everything as JSON."""
    if as_json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=2))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine().items()))
        print(tabulate(rows, headers="keys", floatfmt=".3f", missingval="-"))


def _cpuinfo() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return file.readlines()
    except OSError:
        return []

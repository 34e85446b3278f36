"""What a sweep of many runs costs beside its training: the local engine's work on a run, how long `status` and `report`
take, and how they grow.

The records that are read are made, not trained, and like real ones in form.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

from measuring import show

from mpt_bihalf.commandline import parse
from mpt_bihalf.data import load_dataset
from mpt_bihalf.endings import run_command
from mpt_bihalf.sums import SUMS, sum_of
from mpt_bihalf.sweep import EngineOptions
from mpt_bihalf.sweep.engines.local import LocalEngine
from mpt_bihalf.sweep.plan import write_plan
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.sweep.work import Outcome
from mpt_bihalf.training import Run
from mpt_bihalf.training.record import RESULT
from mpt_bihalf.training.recorded_data import DATA

EPOCHS = 10
NETWORKS = ("conv2", "conv4", "conv6", "conv8")
METHODS = ("mpt-sign", "mpt-bihalf", "mpt-balanced", "magnitude-sign", "magnitude-bihalf")
RATES = [round(0.1 * rate, 1) for rate in range(1, 10)]


@dataclass(frozen=True, kw_only=True)
class SweepScale:
    """What to measure."""

    parts: list[str] = field(default_factory=lambda: list(PARTS))
    """what to measure: overhead (of the local engine), reading (by status and report)"""
    records: list[int] = field(default_factory=lambda: [100, 1_000, 10_000])
    """how many records the folders have that are read"""
    runs: int = 50
    """how many runs the engine does"""
    rounds: int = 3
    """times each command is run; the median counts"""
    json: bool = False
    """print JSON"""


def main() -> None:
    options = parse(SweepScale, "What status and report cost in folders of many records.")
    rows = [row for part in options.parts for row in PARTS[part](options)]
    show(rows, options.json)


def reading(options: SweepScale) -> Iterator[dict[str, Any]]:
    """Status and report as real commands, start of Python included; `growth` is the exponent against the last size."""
    last: dict[str, tuple[int, float]] = {}
    for count in options.records:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place)
            make_records(out, count)
            for command in (["status"], ["status", "--json"], ["report"]):
                times = [_times([*command, place]) for _ in range(options.rounds)]
                seconds, busy = (statistics.median(column) for column in zip(*times, strict=True))
                name = " ".join(command)
                row = {"what": name, "records": count, "s": seconds, "processor s": busy}
                if name in last:
                    before, then = last[name]
                    row |= {"ratio": seconds / then, "growth": math.log(seconds / then) / math.log(count / before)}
                last[name] = count, seconds
                yield row


def overhead(options: SweepScale) -> Iterator[dict[str, Any]]:
    """Time of the local engine for each run, one worker: an empty run, and one of one step beside its training."""
    settings = dict(method="mpt-bihalf", epochs=1, batch_size=1000, device="cpu", threads=1)
    runs = [Run(seed=seed, **settings) for seed in range(options.runs)]
    with tempfile.TemporaryDirectory() as place:
        for what in ("run of one step, beside its training", "empty run: done already"):
            engine = LocalEngine(Path(place), runs, EngineOptions(jobs=1))
            ends = [time.perf_counter() for event in engine.do(runs) if isinstance(event, Outcome)]
            each = statistics.median(after - before for before, after in itertools.pairwise(ends))
            if what.startswith("run"):
                files = [run_folder(Path(place), run) / "times.json" for run in runs]
                each -= statistics.median(json.loads(file.read_text())["seconds"] for file in files)
            yield {"what": what, "records": len(runs), "s": each}


def make_records(out: Path, count: int) -> None:
    """Leave in `out` what a sweep of `count` runs leaves: nine in ten done, some diverged, the rest missing."""
    chance, data = random.Random(0), load_dataset("digits").digest
    runs = list(islice(grid(), count))
    write_plan(out, runs, ["python", "experiments/prune_sweep.py"])
    for run in runs[: math.ceil(0.9 * count)]:
        folder = run_folder(out, run)
        folder.mkdir(parents=True)
        top1 = 60 + 30 * chance.random()
        figures = {f"{split}_{name}": 1.5 for split in ("train", "test") for name in ("loss", "top1", "top5")}
        figures["test_top1"] = top1
        best = {"best_epoch": EPOCHS, "best_epoch_test_top1": top1}
        result = {"status": "finished", "epochs": EPOCHS, **figures, **best}
        if chance.random() < 0.01:
            result = {"status": "diverged: NaN in layer 'features.0' in epoch 3"}
        for name, content in (
            ("config", asdict(run)),
            ("result", result),
            ("times", {"seconds": 60.0, "from_epoch": 0}),
        ):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
        if (folder / RESULT).exists():
            (folder / SUMS).write_text(f"{sum_of((folder / RESULT).read_bytes())}  {RESULT}\n")
        (folder / DATA).write_text(json.dumps(data.to_json()))


def grid() -> Iterator[Run]:
    """Runs without end: networks x methods x rates, trial after trial."""
    settings = list(product(NETWORKS, METHODS, RATES))
    for seed in range(sys.maxsize):
        for model, method, rate in settings:
            yield Run(model=model, method=method, prune_rate=rate, seed=seed, epochs=EPOCHS, device="cpu", threads=1)


def _times(arguments: list[str]) -> tuple[float, float]:
    """Seconds that a command takes by the clock, and of the processor."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "mpt_bihalf", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, busy


# A part gives rows for the table; each is measured by itself with --parts.
PARTS: dict[str, Callable[[SweepScale], Iterator[dict[str, Any]]]] = {"overhead": overhead, "reading": reading}


if __name__ == "__main__":
    run_command(main)

"""What cannot be settled without an accelerator, in minutes: checks that it does what the CPU does, and what it costs.

Checks: masks, signs, scales and gradients against those of the CPU; the loops in Triton against plain torch; a run that
is resumed against one left alone; mixed precision. Measures: steps as ratios to the dense one, by the device's own
events, A B A B; selection against sort and topk; memory, an epoch, several runs at once, hours of the paper's grids.

`on_device.json` and `on_device.md` are written after each cell, so that what is done is kept whatever comes. Cells that
no longer fit into the minutes are left out, the most useful come first. With `--device meta` a step of each method is
taken on a device without values: nothing in it waits for the device. `--device cpu --small` tries the command itself.
"""

from __future__ import annotations

import gc
import math
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from measuring import median_ratio
from selection import by_sort, by_topk
from torch import Tensor, nn

from mpt_bihalf import METHODS, binarize_weights, kernels, selection, standardise
from mpt_bihalf.commandline import parse
from mpt_bihalf.data import Dataset, ImageSet, evaluation_batches, load_dataset, training_batches
from mpt_bihalf.devices import (
    device_name,
    keep_freed_memory,
    loss_scaler,
    pick_device,
    reproducible_kernels,
    use_accelerator,
)
from mpt_bihalf.endings import CommandFailed, one_line, run_command, show
from mpt_bihalf.experiments.method_comparison import MethodComparison
from mpt_bihalf.experiments.prune_sweep import PruneSweep
from mpt_bihalf.files import output_folder, write_json, write_text
from mpt_bihalf.gradients import SCORE_GRADIENTS
from mpt_bihalf.layer import Layer
from mpt_bihalf.masks import SCOPES
from mpt_bihalf.parametrization import BinaryWeight, binary_parts, one_pass
from mpt_bihalf.report.tables import Table
from mpt_bihalf.selection import Selection
from mpt_bihalf.signals import Stopped, say_also
from mpt_bihalf.training import Callback, Epoch, Progress, Run, train, train_step
from mpt_bihalf.training.build import build_network, build_optimizer, check_compiles, check_computes, compiled
from mpt_bihalf.training.captured import CapturedStep
from mpt_bihalf.training.environment import commit_of
from mpt_bihalf.training.step import evaluate

Result = dict[str, Any]

CLOSE = 1e-5  # how far scales and gradients may differ, relative to the largest
CLASSES, CHANNELS, SIZE = 10, 3, 32  # as CIFAR-10
IMAGES, TEST_IMAGES = 50_000, 10_000  # of CIFAR-10 and of CIFAR-100
COMPARED = ("mpt-sign", "mpt-bihalf")
OF_THE_PAPER = ("mpt-sign", "mpt-bihalf", "sign", "bihalf", "irnet")  # in Fig. 8 and Table 2
NARROW = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALWAYS = -math.inf  # what a cell needs that takes no time


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """Where, and for how long."""

    device: str = "auto"
    """auto (an accelerator if there is one), cpu, any torch device, or meta: a step of each method, without values"""
    small: bool = False
    """tiny sizes, which try the command and tell nothing of a device"""
    minutes: float = 6.0
    """what does not fit into them is left out"""
    out: str = "runs/on_device"
    """folder for on_device.json and on_device.md"""
    steps: int = 0
    """take so many steps for each line on standard input, as one of several runs at once (for this command itself)"""


@dataclass
class Place:
    """Where cells run, in which sizes and until when, and what they leave for each other."""

    device: torch.device
    small: bool = False
    until: float = math.inf
    """on the monotonic clock"""
    steps: dict[tuple[str, str], float] = field(default_factory=dict)
    """seconds of a step, by network and method, as far as measured"""

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def run(self, **settings: Any) -> Run:
        """A run here, of the sizes here; its compute is dense."""
        sizes: Result = {"width": 0.125, "batch_size": 8} if self.small else {"batch_size": 128}
        here: Result = {"device": str(self.device), "compute": "dense", "threads": torch.get_num_threads()}
        return Run(**{"data": "cifar10", "prune_rate": 0.9, **sizes, **here, **settings})


@dataclass(frozen=True)
class Cell:
    """One thing to check or to measure. `work` gives what is found; of a check `passed` too, None: not applicable."""

    name: str
    kind: str
    work: Callable[[Place], Result]
    needs: float = 5
    """seconds that must be left, roughly what it takes"""


def step_of(run: Run) -> Callable[[], object]:
    """A training step of this run on one batch, as the training loop takes it. All that a step may be is made here."""
    device, g = torch.device(run.device), torch.Generator().manual_seed(0)
    x = torch.randn(run.batch_size, CHANNELS, SIZE, SIZE, generator=g)
    x = x.to(device, memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (run.batch_size,), generator=g).to(device)
    check_compiles(run)
    check_computes(run)
    model = build_network(run, CLASSES, CHANNELS, SIZE).to(device)
    optimizer, scaler = build_optimizer(run, model), loss_scaler(device, run.precision == "fp16")
    take: Callable[..., object] = train_step
    if run.graph:
        take = CapturedStep()
    return partial(take, compiled(run, model), optimizer, x, y, run.precision, scaler)


def why_not(run: Run) -> str:
    """Why steps of this run cannot be taken here; empty where they can."""
    try:
        check_computes(run)
        check_compiles(run)
    except ValueError as reason:
        return str(reason)
    return ""


def settle(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(device: torch.device, task: Callable[[], object], repeat: int) -> float:
    """How long a task takes, the mean of so many in a row: by the device's own events, on the CPU by its clock."""
    settle(device)
    if device.type == "cpu":
        begun = time.perf_counter()
        for _ in range(repeat):
            task()
        return (time.perf_counter() - begun) / repeat
    start, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeat):
        task()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeat


def in_turn(place: Place, tasks: dict[str, Callable[[], object]], repeat: int = 5) -> dict[str, list[float]]:
    """Seconds of each task in each round, A B A B, once all are warm."""
    for task in tasks.values():
        for _ in range(5 if place.device.type != "cpu" else 1):
            task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(2 if place.small else 11):
        for name, task in tasks.items():
            seconds[name].append(seconds_of(place.device, task, 1 if place.small else repeat))
    return seconds


def beside(seconds: dict[str, list[float]], reference: str) -> Result:
    """Milliseconds of each, and how many times those of the reference: medians."""
    return {
        name: {"ms": 1000 * statistics.median(each), f"/ {reference}": median_ratio(each, seconds[reference])}
        for name, each in seconds.items()
    }


def some_values(rows: int, size: int, seed: int = 0) -> Tensor:
    """Normal draws with ties, zeros of both signs and infinities."""
    values = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    values[:, ::2] = values[:, ::2].mul(4).round().div(4)
    for place, value in enumerate((0.0, -0.0, math.inf, -math.inf, 0.0, -0.0)):
        values[:, 3 * place + 1 :: 97] = value
    return values


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, relative to the largest magnitude of the first; infinite where there is a NaN."""
    apart = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=torch.finfo(ours.dtype).tiny))
    return math.inf if math.isnan(apart) else apart


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(*(x.view(torch.int32) if x.dtype == torch.float32 else x for x in (ours, theirs)))


def verdict(same: dict[str, bool]) -> Result:
    """The result of a check that compared these."""
    wrong = [name for name, equal in same.items() if not equal]
    return {"passed": not wrong, "compared": len(same), **({"wrong": "; ".join(wrong)} if wrong else {})}


# Checks


def binarized_methods() -> Iterator[tuple[str, str]]:
    """Each method with binary weights, under each scope that it is open to."""
    for name, method in METHODS.items():
        if method.binarizer is not None:
            yield from product([name], SCOPES if method.scoped else SCOPES[:1])


def sample_network(method: str, scope: str) -> nn.Module:
    """Three layers on the CPU, one with more weights than a program of Triton holds; ties in what is ranked."""
    layers = nn.Conv2d(3, 13, 3), nn.Conv2d(13, 21, 3), nn.Flatten(), nn.Linear(189, 90)
    model = binarize_weights(nn.Sequential(*layers), method, prune_rate=0.7, scope=scope, seed=0)
    with torch.no_grad():
        for _, part, weight in binary_parts(model):
            for ranked in (part.scores, None if part.method.trains == "signs" else weight):
                if ranked is not None:
                    unit = 4 / ranked.std()
                    ranked.view(-1)[::2] = ranked.view(-1)[::2].mul(unit).round().div(unit)
    return model


def decided(layer: nn.Module, part: BinaryWeight, weight: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """All that a method decides of a layer, and what it makes of the loss's gradient, on the CPU."""
    with torch.no_grad():
        mask, positive, alpha = part.method.decide(part.layer(weight, part.scores, part.alpha))
    used: Any = layer.weight
    used.backward(gradient.to(weight.device))
    trained = weight if part.scores is None else part.scores
    assert trained.grad is not None
    mask = torch.ones_like(positive) if mask is None else mask
    found = {
        "masks": mask,
        "signs": positive,
        "alpha": alpha,
        "gradient": trained.grad,
        "weights in use": used.detach(),
    }
    return {name: tensor.cpu() for name, tensor in found.items()}


def as_on_the_cpu(place: Place, method: str, scope: str) -> Result:
    """Masks and signs, those of pruned weights too, with the same bits; scales and gradients up to rounding."""
    near = sample_network(method, scope)
    far = deepcopy(near).to(place.device)
    equal: dict[str, bool] = {}
    apart: dict[str, float] = {}
    g = torch.Generator().manual_seed(1)
    with one_pass(near), one_pass(far):
        for (name, *ours), (_, *theirs) in zip(binary_parts(near), binary_parts(far), strict=True):
            gradient = torch.randn(ours[1].shape, generator=g)
            here = decided(near.get_submodule(name), *ours, gradient)
            there = decided(far.get_submodule(name), *theirs, gradient)
            for what, tensor in here.items():
                equal[what] = equal.get(what, True) and same_bits(tensor, there[what])
                if tensor.dtype != torch.bool:
                    apart[what] = max(apart.get(what, 0.0), difference(tensor, there[what]))
    passed = equal["masks"] and equal["signs"] and max(apart.values()) <= CLOSE
    told = {f"{what} apart by": distance for what, distance in apart.items() if distance}
    return {"passed": passed, "same bits in": ", ".join(what for what, same in equal.items() if same), **told}


def selected_as_on_the_cpu(place: Place) -> Result:
    """Selections of each dtype, of short and long rows."""
    told = {}
    for (name, dtype), (rows, size) in product(NARROW.items(), ((40, 300), (1, 50_000))):
        values = some_values(rows, size).to(dtype)
        here = Selection().largest(values, size // 3, absolute=True)
        there = Selection().largest(values.to(place.device), size // 3, absolute=True)
        told[f"{name} [{rows}, {size}]"] = torch.equal(here, there.cpu())
    return verdict(told)


def by_triton(place: Place, compare: Callable[[torch.device], dict[str, bool]]) -> Result:
    """What the comparison finds, where Triton's loops are used."""
    loops = kernels.on_accelerator(torch.zeros(1, device=place.device))
    if loops is None:
        return {"passed": None, "note": "not applicable: no Triton for this device"}
    return verdict(compare(place.device))


def selection_compared(device: torch.device, shapes: Iterable[tuple[int, int]]) -> dict[str, bool]:
    """Selections against plain torch; of the first shape in all ways, as each way has a kernel to be compiled."""
    told = {}
    for number, (rows, size) in enumerate(shapes):
        ways = product(NARROW, (False, True), (False, True)) if number == 0 else [("float32", True, False)]
        for name, absolute, members in ways:
            if name != "float32" and (members or not absolute):
                continue
            values = some_values(rows, size, seed=number).to(device, NARROW[name])
            among = some_values(rows, size, seed=9).gt(0.5).to(device) if members else None
            many = [size] * rows if among is None else among.sum(1).tolist()
            each = torch.tensor([i * most // max(rows, 2) for i, most in enumerate(many)], device=device)
            plain = selection._ordered(values.abs() if absolute else values)
            for count in (0, 1, min(many) // 2, min(many), each):
                ours = Selection().largest(values, count, absolute, among)
                what = "each" if isinstance(count, Tensor) else count
                way = f"{name} [{rows}, {size}] {what}{' absolute' * absolute}{' among' * members}"
                told[way] = torch.equal(ours, selection._largest(plain, count, among))
            if among is not None:
                both = min(many) // 3, min(size - most for most in many) // 2
                ours = Selection().largest_of_both(values, both, among, absolute)
                first, second = (
                    selection._largest(plain, n, of) & of for n, of in zip(both, (among, ~among), strict=True)
                )
                told[f"{name} [{rows}, {size}] both groups{' absolute' * absolute}"] = torch.equal(ours, first | second)
    return told


def short_rows_compared(device: torch.device) -> dict[str, bool]:
    return selection_compared(device, ((40, 300), (5, 1), (2, 2**14)))


def long_rows_compared(device: torch.device) -> dict[str, bool]:
    return selection_compared(device, ((3, 50_003), (1, 2**14 + 1), (1, 2**20)))


def others_compared(device: torch.device, rows: int = 40, size: int = 301) -> dict[str, bool]:
    """The weight in use, the gradient of scores, and standardised weights, against plain torch."""
    told = {}
    draws = (some_values(rows, size, seed).clamp(-9, 9).to(device) for seed in range(5))  # all finite
    positive, mask, g, w, scores = draws
    positive, mask = positive > 0, mask > 0.5
    for dtype, kept, one in product(("float32", "bfloat16"), (None, mask), (True, False)):
        alpha = w.abs().mean(None if one else 1, keepdim=True).to(NARROW[dtype])
        plain = torch.where(positive, alpha, -alpha)
        plain = plain if kept is None else plain.masked_fill(~kept, 0)
        way = f"{dtype}{'' if one else ' of filters'}"
        told[f"signed {way}{' masked' * (kept is not None)}"] = torch.equal(
            kernels.signed(positive, kept, alpha), plain
        )
        if kept is None:
            of_loss, of_scores, weights = (x.to(NARROW[dtype]) for x in (g, scores, w))
            rule = SCORE_GRADIENTS["binary" if one else "latent"]
            plain = of_loss * (alpha if one else weights.abs())
            plain = torch.where(positive == (of_scores >= 0), plain, -plain)
            ours = rule(of_loss, Layer(weights, of_scores), positive, alpha)
            told[f"score gradient {dtype}{'' if one else ' of weights'}"] = torch.equal(ours, plain)
    w[3] = 0.7  # equal weights
    told["standardised equal weights: signs"] = bool(standardise.Standard.of(w).positive[3].all())
    for kept in (None, mask):
        way = "masked" if kept is not None else "all"
        ours, plain = standardise.Standard.of(w, kept), standardise._of_few(w, kept)
        far = ((w - plain.mean) / plain.deviation).abs() > CLOSE  # from the mean, where sums round otherwise
        told[f"standardised {way}: signs"] = torch.equal(ours.positive & far, plain.positive & far)
        told[f"standardised {way}: means"] = (
            difference(plain.deviation, plain.deviation + ours.mean - plain.mean) <= CLOSE
        )
        told[f"standardised {way}: deviations"] = difference(plain.deviation, ours.deviation) <= CLOSE
        told[f"standardised {way}: magnitudes"] = difference(plain.magnitude, ours.magnitude) <= CLOSE
    return told


def digits_here(place: Place, method: str, **settings: Any) -> tuple[Run, Dataset]:
    """Two epochs of digits, a few seconds."""
    digits = load_dataset("digits")
    if place.small:
        digits = replace(digits, train=digits.train.take(torch.arange(256)))
    sizes: Result = {"model": "conv2", "width": 0.25, "epochs": 2, "batch_size": 64, "prune_rate": 0.5}
    return place.run(method=method, data="digits", **sizes, **settings), digits


class AfterAnEpoch(Callback):
    """Ends a run by an interrupt, once an epoch is done."""

    def epoch(self, run: Run, progress: Progress, epoch: Epoch) -> None:
        raise KeyboardInterrupt


class InMidEpoch(Callback):
    """Ends a run by a signal, in the middle of its second epoch."""

    def step(self, run: Run, progress: Progress) -> None:
        steps = progress.steps // run.epochs
        if progress.step == steps + steps // 2:
            raise Stopped(SIGTERM)


def same_ends(one: Path, other: Path) -> dict[str, bool]:
    """What two trainings have left alike, to the last bit."""
    told = {name: (one / name).read_bytes() == (other / name).read_bytes() for name in ("metrics.csv", "layers.csv")}
    ours, theirs = (torch.load(each / "checkpoint.pt", weights_only=True)["model"] for each in (one, other))
    return told | {"weights and scores": all(torch.equal(ours[name], theirs[name]) for name in ours)}


def resumed_as_left_alone(place: Place, method: str) -> Result:
    """A run ended after its first epoch by an interrupt and in mid-epoch by a signal, against one in one go."""
    run, digits = digits_here(place, method)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        train(run, whole, digits, [])
        ends = 0
        for callbacks in ([AfterAnEpoch()], [InMidEpoch()], []):
            try:
                train(run, parts, digits, callbacks)
            except KeyboardInterrupt:
                ends += 1
        return verdict({"both interrupted": ends == 2, **same_ends(whole, parts)})


def graphs_as_steps(place: Place, method: str) -> Result:
    """A run whose steps are a graph of the device against one that takes them one kernel at a time."""
    same: Result = {"lr": 0.125, "schedule": "constant"}  # a rate that float32 has, as a graph holds it
    (run, digits), (by_graphs, _) = digits_here(place, method, **same), digits_here(place, method, graph=True, **same)
    if reason := why_not(by_graphs):
        return {"passed": None, "note": f"not applicable: {reason}"}
    with tempfile.TemporaryDirectory() as folder:
        whole, graphs = Path(folder, "whole"), Path(folder, "graphs")
        train(run, whole, digits, [])
        train(by_graphs, graphs, digits, [])
        return verdict(same_ends(whole, graphs))


def finite_in(place: Place, precision: str) -> Result:
    """A few steps in mixed precision: the last one's loss, and whether all were finite."""
    told: Result = {"passed": True}
    for method in COMPARED:
        run = place.run(model="conv2", method=method, precision=precision, lr=0.01)
        step: Any = step_of(run)
        losses = [float(step()[0]) / run.batch_size for _ in range(3 if place.small else 20)]
        told["passed"] &= all(map(math.isfinite, losses))
        told[f"loss of {method}"] = losses[-1]
    return told


def a_step_without_values(place: Place, method: str, scope: str) -> Result:
    """One that waits for no device: there are no values to wait for."""
    step: Any = step_of(place.run(model="conv2", method=method, scope=scope, prune_rate=0.5))
    return {"passed": bool(step().is_meta)}


# Measures


def steps_of(place: Place, model: str, methods: Iterable[str]) -> Result:
    """A step of each method, and of a second dense network: how far that is from 1 tells how far to trust the others.

    What is measured is left for `hours`.
    """
    runs = {method: place.run(model=model, method=method) for method in ["dense", *methods]}
    steps = {name: step_of(run) for name, run in runs.items()}
    steps["dense again"] = step_of(runs["dense"])
    seconds = in_turn(place, steps)
    place.steps |= {(model, method): statistics.median(seconds[method]) for method in runs}
    return beside(seconds, "dense")


@contextmanager
def tf32(products: bool, convolutions: bool) -> Iterator[None]:
    """Within, whether float32 may be multiplied in TF32 where a device has that."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if products else "highest")
    torch.backends.cudnn.allow_tf32 = convolutions
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def in_setting(place: Place, **settings: Any) -> Result:
    """Steps of Conv4, each a ratio to the dense one of the same setting."""
    if place.small and settings.get("compile"):
        return {"note": "not in the small sizes: compiling takes long"}
    if reason := why_not(place.run(model="conv4", **settings)):
        return {"note": reason}
    methods = "dense", *COMPARED
    steps = {method: step_of(place.run(model="conv4", method=method, **settings)) for method in methods}
    return beside(in_turn(place, steps), "dense")


def in_tf32(place: Place, products: bool, convolutions: bool) -> Result:
    with tf32(products, convolutions):
        return in_setting(place)


def selecting(place: Place, rows: int, size: int) -> Result:
    """Half of each row by magnitude: ours, torch's stable sort and topk, each to a mask."""
    scores = torch.randn(rows, size, generator=torch.Generator().manual_seed(0)).to(place.device)
    kept, ours = size // 2, Selection()
    tasks: dict[str, Callable[[], object]] = {
        "ours": partial(ours.largest, scores, kept, absolute=True),
        "sort": partial(by_sort, scores, kept),
        "topk": partial(by_topk, scores, kept),
    }
    if kernels.on_accelerator(scores):
        tasks["ours without Triton"] = lambda: selection._largest(scores.abs(), kept, None)
    return beside(in_turn(place, tasks, max(1, min(20, 2 * 10**7 // scores.numel()))), "ours")


def peak_memory(place: Place, model: str) -> Result:
    """MiB that a training takes of the device at most, dense and not."""
    memory: Any = torch.get_device_module(place.device)
    if not hasattr(memory, "max_memory_allocated"):
        return {"note": "this device does not tell"}
    peaks = {}
    for method in ("dense", "mpt-bihalf"):
        gc.collect()
        before = memory.memory_allocated(place.device)
        step = step_of(place.run(model=model, method=method))
        step()
        memory.reset_peak_memory_stats(place.device)
        step()
        settle(place.device)
        peaks[method] = (memory.max_memory_allocated(place.device) - before) / 2**20
        del step
    return {f"{name}, MiB": peak for name, peak in peaks.items()} | {"ratio": peaks["mpt-bihalf"] / peaks["dense"]}


def random_cifar(images: int, test_images: int) -> Dataset:
    """Noise in the shape of CIFAR-10, augmented as that."""
    g = torch.Generator().manual_seed(0)

    def some(count: int) -> ImageSet:
        pixels = torch.randint(256, (count, CHANNELS, SIZE, SIZE), dtype=torch.uint8, generator=g)
        return ImageSet(pixels, torch.randint(CLASSES, (count,), generator=g))

    return Dataset("noise", some(images), some(test_images), (*"0123456789",), (0.5,) * 3, (0.25,) * 3, 4, True)


def an_epoch(place: Place) -> Result:
    """Seconds of an epoch of Conv4, of its batches alone and of the test images."""
    sizes = (64, 32) if place.small else (IMAGES, TEST_IMAGES)
    data = random_cifar(*sizes).to(place.device)
    run = place.run(model="conv4", method="mpt-bihalf")
    model = build_network(run, CLASSES, CHANNELS, SIZE).to(place.device)
    optimizer = build_optimizer(run, model)

    def training(most: float = math.inf) -> None:
        for number, (x, y) in enumerate(training_batches(data, run.batch_size, 0, 0)):
            if number >= most:
                break
            train_step(model, optimizer, x, y)
        settle(place.device)

    def batches() -> None:
        for _ in training_batches(data, run.batch_size, 0, 0):
            pass
        settle(place.device)

    def test() -> None:
        evaluate(model, evaluation_batches(data.test, data), "test")

    training(5)
    told: Result = {"images": sizes[0], "test images": sizes[1]}
    for name, task in (("training", training), ("batches alone", batches), ("test", test)):
        begun = time.perf_counter()
        task()
        told[f"{name}, s"] = time.perf_counter() - begun
    return told


def work_when_told(place: Place, steps: int) -> None:
    """Be one of several runs at once: for each line on standard input so many steps, then the seconds they took."""
    step = step_of(place.run(model="conv2"))
    for _ in range(3):
        step()
    settle(place.device)
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        settle(place.device)
        print(time.perf_counter() - begun, flush=True)


def at_once(place: Place) -> Result:
    """Steps of Conv2 a second, of all processes together, where so many train on this device at once."""
    steps, numbers = (2, (1, 2)) if place.small else (200, (1, 2, 4, 8))
    words = [sys.executable, __file__, "--device", str(place.device), "--steps", str(steps), *["--small"] * place.small]
    workers: list[subprocess.Popen[str]] = []
    guard = threading.Timer(min(place.left, 600), lambda: [worker.kill() for worker in workers])
    guard.start()
    try:
        with tempfile.TemporaryFile("w+") as errors:
            for _ in range(numbers[-1]):
                pipe = subprocess.PIPE
                workers.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=errors, text=True))

            def told_by(some: list[subprocess.Popen[str]]) -> None:
                for worker in some:
                    if not (worker.stdout and worker.stdout.readline()):
                        errors.seek(0)
                        last = [line for line in errors.read().splitlines() if line.strip()][-1:]
                        raise RuntimeError(f"a run among {len(workers)} ended: {' '.join(last) or 'out of time'}")

            told_by(workers)
            rates = {}
            for number in numbers:
                begun = time.perf_counter()
                for worker in workers[:number]:
                    assert worker.stdin
                    worker.stdin.write("go\n")
                    worker.stdin.flush()
                told_by(workers[:number])
                rates[number] = number * steps / (time.perf_counter() - begun)
    finally:
        guard.cancel()
        for worker in workers:
            worker.kill()
            worker.communicate()
    return {f"{number} at once": {"steps/s": rate, "/ alone": rate / rates[1]} for number, rate in rates.items()}


def hours(place: Place) -> Result:
    """Of the paper's grids on one device like this, one run after the other: their steps alone, without evaluation.

    From the steps measured here, at 90 % pruned and with ten classes.
    """
    device = str(place.device)
    of_resnet = PruneSweep(recipe="paper", models=["resnet18"], data="cifar100", device=device)
    grids = {
        "Fig. 8, Conv": PruneSweep(recipe="paper", device=device).runs(),
        "Fig. 8, ResNet-18": of_resnet.runs(),
        "Table 2": MethodComparison(recipe="paper", device=device).runs(),
    }
    told = {}
    for title, runs in grids.items():
        known = [run for run in runs if (run.model, run.method) in place.steps]
        seconds = [run.epochs * (IMAGES // run.batch_size) * place.steps[run.model, run.method] for run in known]
        missing = sorted({run.model for run in runs} - {run.model for run in known})
        told[title] = {
            "runs": len(runs),
            "measured": len(known),
            "hours of these": sum(seconds) / 3600,
            "not measured": ", ".join(missing) or "-",
        }
    return {"note": "of the small sizes: no estimate"} | told if place.small else told


# All of it


def cells(place: Place) -> list[Cell]:
    """What there is to do here, the most useful first."""
    if place.device.type == "meta":
        arms = [("dense", SCOPES[0]), *binarized_methods()]
        return [
            Cell(f"a step of {m}, {s}", "check", partial(a_step_without_values, method=m, scope=s)) for m, s in arms
        ]
    others = [method for method in METHODS if method != "dense"]
    sizes = [10**3, 10**4, 10**5] if place.small else [10**4, 10**5, 10**6, 4_194_304, 10**7, 10**8]
    shapes = [*((1, size) for size in sizes), (32, 288) if place.small else (512, 4608)]
    settings: dict[str, Callable[[Place], Result]] = {
        "eager": in_setting,
        "graph": partial(in_setting, graph=True),
        "tf32 in products too": partial(in_tf32, products=True, convolutions=True),
        "no tf32": partial(in_tf32, products=False, convolutions=False),
        "bf16": partial(in_setting, precision="bf16"),
        "compile": partial(in_setting, compile=True),
    }
    compared = {
        "selection, short rows": short_rows_compared,
        "selection, long rows": long_rows_compared,
        "signed, gradient, standardised": others_compared,
    }
    return [
        *(
            Cell(f"as on the CPU: {m}, {s}", "check", partial(as_on_the_cpu, method=m, scope=s))
            for m, s in binarized_methods()
        ),
        Cell("as on the CPU: selection", "check", selected_as_on_the_cpu),
        *(
            Cell(f"Triton against torch: {name}", "check", partial(by_triton, compare=compare), needs=20)
            for name, compare in compared.items()
        ),
        *(
            Cell(f"resumed as left alone: {m}", "check", partial(resumed_as_left_alone, method=m))
            for m in ("mpt-bihalf", "irnet", "bop")
        ),
        *(
            Cell(f"graphs train as steps do: {m}", "check", partial(graphs_as_steps, method=m))
            for m in ("mpt-bihalf", "irnet", "bop")
        ),
        *(Cell(f"finite in {p}", "check", partial(finite_in, precision=p)) for p in ("bf16", "fp16")),
        *(
            Cell(f"steps of {model}", "measure", partial(steps_of, model=model, methods=others), needs=15)
            for model in ("conv2", "conv4", "resnet18")
        ),
        *(
            Cell(f"steps of {model}", "measure", partial(steps_of, model=model, methods=OF_THE_PAPER))
            for model in ("conv6", "conv8")
        ),
        *(
            Cell(f"steps of conv4: {name}", "measure", work, needs=60 if name == "compile" else 5)
            for name, work in settings.items()
        ),
        *(
            Cell(f"selection [{rows}, {size}]", "measure", partial(selecting, rows=rows, size=size))
            for rows, size in shapes
        ),
        *(Cell(f"memory of {m}", "measure", partial(peak_memory, model=m)) for m in ("conv2", "resnet18")),
        Cell("an epoch of conv4", "measure", an_epoch, needs=10),
        Cell("runs of conv2 at once", "measure", at_once, needs=30),
        Cell("hours of the paper's grids", "measure", hours, needs=ALWAYS),
    ]


def done(cell: Cell, place: Place) -> Result:
    """The record of a cell: what it found, or why it found nothing."""
    begun = time.monotonic()
    passed: bool | None = None
    if place.left < cell.needs:
        result: Result = {"skipped": "no time left"}
    else:
        try:
            result = cell.work(place)
            passed = result.pop("passed", None)
        except Exception as fault:
            result, passed = {"error": one_line(f"{type(fault).__name__}: {fault}", 300)}, False
    record = {"name": cell.name, "kind": cell.kind, "seconds": time.monotonic() - begun, "result": finite(result)}
    return record | ({"passed": passed} if cell.kind == "check" else {})


def finite(value: Any) -> Any:
    """The value with text for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(name): finite(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def facts(options: OnDevice, device: torch.device) -> Result:
    """The device, the versions and the options."""
    file = Path("/proc/driver/nvidia/version")
    driver = re.search(r"\d+(\.\d+)+", file.read_text()) if file.exists() else None
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    return {
        "device": "meta" if device.type == "meta" else device_name(device),
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "driver": driver.group() if driver else None,
        "commit": commit_of(Path(__file__).parents[1]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "products of float32": torch.get_float32_matmul_precision(),
        "convolutions in tf32": torch.backends.cudnn.allow_tf32,
        "options": asdict(options),
    }


def run_cells(options: OnDevice, place: Place, some: list[Cell], out: Path) -> list[str]:
    """Do the cells, and write what there is after each; the names of the checks that failed."""
    record = facts(options, place.device) | {"cells": []}
    for cell in some:
        record["cells"].append(done(cell, place))
        gc.collect()  # models know themselves in circles
        write_text(out / "on_device.md", markdown(record))
        write_json(out / "on_device.json", record)
        show(f"{cell.name}: {outcome(record['cells'][-1])}")
    return [cell["name"] for cell in record["cells"] if cell.get("passed") is False]


def outcome(cell: Result) -> str:
    """What a cell found, in a few words; results of several rows have a table of their own."""
    word = {True: "passed", False: "FAILED"}.get(cell.get("passed"), "")  # type: ignore[arg-type]
    told = [f"{name} {number(value)}" for name, value in cell["result"].items() if not isinstance(value, dict)]
    return ": ".join(filter(None, [word, ", ".join(told)])) or "measured"


def number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(record: Result) -> str:
    """A table of all cells, and one of each that has several rows."""
    rows = [[cell["name"], outcome(cell), f"{cell['seconds']:.1f}"] for cell in record["cells"]]
    head = ", ".join(f"{name} {value}" for name, value in record.items() if name not in ("options", "cells"))
    tables = [Table(head, ["cell", "outcome", "s"], rows)]
    for cell in record["cells"]:
        nested = {name: value for name, value in cell["result"].items() if isinstance(value, dict)}
        columns = list(dict.fromkeys(column for row in nested.values() for column in row))
        body = [[name, *(number(row.get(column, "")) for column in columns)] for name, row in nested.items()]
        tables += [Table(cell["name"], ["", *columns], body)] if nested else []
    return "\n\n".join(f"{table.title}\n\n{table.text('github')}" for table in tables) + "\n"


def main() -> None:
    options = parse(OnDevice, "Check and measure, in minutes, what takes a machine with an accelerator.")
    if not 0 < options.minutes < math.inf:
        raise ValueError(f"minutes must be a finite number above 0, not {options.minutes}")
    device = torch.device("meta") if options.device == "meta" else pick_device(options.device)
    if device.type not in ("cpu", "meta") and device.index is not None:
        use_accelerator(device.index)
    place = Place(device, options.small, time.monotonic() + 60 * options.minutes)
    keep_freed_memory()
    reproducible_kernels()  # as in training
    if options.small:
        torch.set_num_threads(1)  # several would only wait for each other
    if options.steps:
        work_when_told(place, options.steps)
        return
    out = output_folder(options.out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        failed = run_cells(options, place, cells(place), out)
    except KeyboardInterrupt as end:
        say_also(end, f"what was done is in {out}")
        raise
    if failed:
        raise CommandFailed(f"checks that failed: {len(failed)}, the first: {failed[0]} (see {out / 'on_device.md'})")
    show(f"results: {out / 'on_device.json'}, {out / 'on_device.md'}")


if __name__ == "__main__":
    run_command(main)

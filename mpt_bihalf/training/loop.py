"""The training loop, read from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from math import ceil, isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from tqdm import tqdm

from ..data import DataError, Dataset, evaluation_batches, load_dataset, training_batches
from ..data.digest import DataDigest
from ..devices import autocast, keep_freed_memory, reproducible_kernels
from ..distributed import ALONE, PartFailed, Team, launched, together
from ..parametrization import find_nan
from ..signals import Stopped, say_also, stop_when_asked
from .build import build, check_begins, check_fits, check_network
from .checkpoint import State, load_checkpoint
from .config import Run
from .record import DIVERGED, FINISHED, NoRecord, Record
from .recorded_data import OtherData, check_asked, check_data, has_begun
from .schedule import learning_rate, start_epoch, start_step

# Images and pixels of a batch in evaluation, at most.
EVALUATION_BATCH, EVALUATION_PIXELS = 500, 500 * 64 * 64
# Processes that decode images by default, at most: each has batches ready.
MOST_WORKERS = 16
MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}
NO_SCALER = GradScaler(enabled=False)
FIGURES = [f"{split}_{figure}" for split in ("train", "test") for figure in ("loss", "top1", "top5")]
CONSTANT = "the network gives the same logits for every test image"


class Diverged(ArithmeticError):
    """A loss, a weight or a score became NaN or infinite; the message names the epoch and the layer."""


class Progress(NamedTuple):
    """How far a run is: training steps done of all it takes, and after an epoch the figures of it."""

    step: int
    steps: int
    figures: dict[str, Any] | None = None


Tell = Callable[[Progress], object]


def train(run: Run, folder: Path, dataset: Dataset | None = None, tell: Tell | None = None) -> dict[str, Any]:
    """Train one run in its folder, from its last checkpoint if there is one, and return its result.

    run: resolved (`Run.resolved`). dataset: the run's data if loaded already. tell: called after each step and each
    epoch; without it there is a progress bar. The folder gets `config.json`, `environment.json`, `metrics.csv` (a row
    an epoch, after each), `layers.csv` (a row a layer and epoch), `trace.csv` (a row a layer and traced step, with
    `run.trace`), `checkpoint.pt`, TensorBoard events, `times.json`, and `result.json` when the run is finished, or has
    diverged: then its `status` says so and why, and there are no figures. It has a `note`, `CONSTANT`, where
    that is so in the last epoch.

    SIGINT and SIGTERM, in the main thread, end it after the step under way: the checkpoint is written as of then, and
    Stopped is raised. Raises ValueError for data and models that do not fit the run.

    Where torchrun has started several processes, the first calls this, and all train the run together.
    """
    dataset = prepare(run, dataset)
    check_asked(run, dataset.digest)
    check_data(folder, run, dataset.digest)
    if not has_begun(folder):
        check_begins(run, check_fits(run, dataset))
    record = Record(folder, run)
    try:
        with together(take_part, run, folder, device=torch.device(run.device)) as team:
            check_alike(team, run, dataset)
            return train_together(team, run, folder, dataset, record, tell)
    except PartFailed:
        raise
    except KeyboardInterrupt as end:
        say_also(end, record.where())
        raise


def take_part(run: Run, folder: Path, team: Team) -> None:
    """What another process than the first does in `train`; the folder is the first one's."""
    dataset = prepare(run, kept_data(run))
    check_alike(team, run, dataset)
    train_together(team, run, folder, dataset, NoRecord(), lambda progress: None)


def prepare(run: Run, dataset: Dataset | None = None) -> Dataset:
    """Set up this process for the run, and give its data on its device; ValueError for what cannot be."""
    if run.processes != launched().processes:
        raise ValueError(f"the run is one of {run.processes} processes, and {launched().processes} are here")
    torch.set_num_threads(run.threads)
    reproducible_kernels()
    keep_freed_memory()
    check_network(run)
    dataset = (dataset or load_run_data(run)).to(torch.device(run.device)).decoded_by(decoders(run))
    check_fits(run, dataset)
    return dataset.augmented(*run.augmentation)


def check_alike(team: Team, run: Run, dataset: Dataset) -> None:
    """DataError, in all processes of the team, where one of them has other data than the first."""
    digest = torch.tensor([*bytes.fromhex(dataset.digest.sha256)], dtype=torch.uint8)
    everyones = team.gather(digest).view(-1, len(digest))
    for rank, theirs in enumerate(everyones):
        if not torch.equal(theirs, everyones[0]):
            raise DataError(f"{run.data} holds other data for process {rank} than for the first")


def train_together(
    team: Team, run: Run, folder: Path, dataset: Dataset, record: Record, tell: Tell | None
) -> dict[str, Any]:
    """`train` in each process of a team. record: what to write, if anything; only the first reads the folder."""
    data = dataset.digest
    dataset, validation = dataset.hold_out(run.holdout) if run.holdout else (dataset, None)
    state = resume(team, run, folder, dataset, record, data)
    record.begin(state)
    model, optimizer, history, steps = state.model, state.optimizer, state.history, state.steps
    parallel = team.parallel(model, run.sync_bn)
    first, total = state.epoch, run.epochs * steps
    with stop_when_asked(team.agree) as stop, telling(run, tell, first * steps + state.step, total) as told:
        try:
            for epoch in range(first, run.epochs):
                model.train()
                start_epoch(model, run, epoch)
                batches = training_batches(dataset, run.batch_size, run.seed, epoch, first=state.step, share=team.share)
                for x, y in stop.between(batches):
                    start_step(optimizer, run, epoch, epoch * steps + state.step, total, team.rank)
                    state.totals += train_step(parallel, optimizer, x, y, run.precision, state.scaler)
                    state.step += 1
                    state.trace.look(state.step)
                    told(Progress(epoch * steps + state.step, total))
                sums = team.sum(state.totals).tolist()
                figures = {"epoch": epoch + 1, **_means(sums, steps * run.batch_size, "train")}
                team.level(model)
                for split, images in (("validation", validation), ("test", dataset.test)):
                    if images is not None:
                        size = evaluation_batch(dataset)
                        batches = evaluation_batches(images, dataset, size, team.share)
                        rounds = ceil(len(images) / (size * team.processes))
                        of_split, constant = evaluate(model, stop.between(batches, rounds), split, run.precision, team)
                        figures |= of_split
                check_finite(model, figures)
                layers, traced = state.log.measure(model, epoch + 1), state.trace.rows(epoch + 1)
                lr = learning_rate(run, epoch, (epoch + 1) * steps - 1, total) if optimizer else 0.0
                state.note = CONSTANT if constant else ""  # of the test images, which come last
                state.end_epoch(epochs=[figures], layers=layers, trace=traced)
                record.end_epoch(state, figures, layers, traced, lr)
                told(Progress((epoch + 1) * steps, total, figures))
            result = {"status": FINISHED, **summarise(history["epochs"])}
            result |= {"note": state.note} if state.note else {}
        except Diverged as fault:
            result = {"status": f"{DIVERGED}: {fault}"}
        except Stopped as stopped:
            totals = team.gather(state.totals)
            try:
                record.keep_steps(state, totals)
            except OSError as fault:
                say_also(stopped, f"the steps since the last checkpoint are lost ({fault})")
            raise
        record.end(history, result)
    return result


@contextmanager
def telling(run: Run, tell: Tell | None, done: int, total: int) -> Iterator[Tell]:
    """Whom to tell how far the run is: a progress bar, from `done` of `total` steps on, if nobody is named."""
    if tell is not None:
        yield tell
        return
    with tqdm(desc=run.name, total=total, initial=done, unit="step", leave=False, disable=None) as bar:
        yield partial(show_progress, bar)


def show_progress(bar: tqdm, progress: Progress) -> None:
    """Move a run's progress bar on, with the last epoch's figures beside it."""
    bar.update(progress.step - bar.n)
    if progress.figures is not None:
        top1, loss = progress.figures["test_top1"], progress.figures["train_loss"]
        bar.set_postfix({"test top-1": f"{top1:.2f}%", "loss": f"{loss:.3f}"})


def load_run_data(run: Run) -> Dataset:
    """The run's data set, with nothing held out yet."""
    return load_dataset(run.data, run.data_root or None, run.image_size or None)


def kept_data(run: Run) -> Dataset:
    """The run's data set, kept in memory for the next run, which mostly has the same; read anew if it wants others."""
    dataset = _kept_data(run.data, run.data_root, run.image_size)
    if run.data_digest in ("", dataset.digest.sha256):
        return dataset
    _kept_data.cache_clear()
    return _kept_data(run.data, run.data_root, run.image_size)


@lru_cache(maxsize=1)
def _kept_data(name: str, root: str, image_size: int) -> Dataset:
    return load_dataset(name, root or None, image_size or None)


def evaluation_batch(dataset: Dataset) -> int:
    """How many images are evaluated at a time."""
    return min(EVALUATION_BATCH, max(1, EVALUATION_PIXELS // dataset.image_size**2))


def decoders(run: Run) -> int:
    """How many processes decode the images of this run, where those do not fit into memory."""
    return run.workers or min(run.threads, MOST_WORKERS)


def resume(team: Team, run: Run, folder: Path, dataset: Dataset, record: Record, data: DataDigest) -> State:
    """The run's state as its last checkpoint has it, or that of its beginning where there is none to go on from.

    A checkpoint that cannot be used is put aside, and the run starts over. data: of the whole data set; OtherData where
    the checkpoint is of others.
    """
    steps = len(dataset.train) // run.batch_size
    model, optimizer = build(run, dataset)
    try:
        state = load_checkpoint(folder, run, model, optimizer, steps, team, data)
    except OtherData:
        raise
    except ValueError as fault:
        record.put_aside(fault)
        model, optimizer = build(run, dataset)  # loading may have got half-way
        state = None
    if state is None:
        state = State.begin(run, model, optimizer, steps)
        state.data = data
    if state.epoch < run.epochs:
        check_begins(run, model)
    return state


def train_step(
    model: nn.Module,
    optimizer: Optimizer | None,
    x: Tensor,
    y: Tensor,
    precision: str = "fp32",
    scaler: GradScaler = NO_SCALER,
) -> Tensor:
    """One step on a batch x [B, C, H, W], y [B]; returns [loss sum, top-1 hits, top-5 hits], without waiting.

    Without an optimizer, where nothing is trained, the batch is only looked at. scaler: of the loss, for fp16.
    """
    if optimizer:
        optimizer.zero_grad(set_to_none=True)
    logits = _logits(model, x, precision)
    loss = F.cross_entropy(logits, y)
    if optimizer:
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return _totals(logits.detach(), y, loss.detach() * len(y))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    split: str,
    precision: str = "fp32",
    team: Team = ALONE,
) -> tuple[dict[str, float], bool]:
    """Loss, top-1 and top-5 in percent over all images, and whether all of several images have equal logits.

    Each binary weight is worked out once, and the device waited for once. batches: this process's; what is returned is
    of those of all.
    """
    model.eval()
    device, images, classes = next(model.parameters()).device, 0, 0
    totals = torch.zeros(3, dtype=torch.float32, device=device)
    # Of each class the highest logit, and the highest of the negated ones.
    bounds = torch.full((2, 1), -torch.inf, dtype=torch.float32, device=device)
    with parametrize.cached():
        for x, y in batches:
            logits = _logits(model, x, precision)
            totals += _totals(logits, y, F.cross_entropy(logits, y, reduction="sum"))
            bounds = torch.maximum(bounds, torch.stack([logits.amax(0), -logits.amin(0)]))
            images, classes = images + len(y), logits.shape[1]
    counts = team.gather(torch.tensor([images, classes])).view(-1, 2)  # a process without images knows no classes
    images, classes = int(counts[:, 0].sum()), int(counts[:, 1].max())
    highest, negated = team.gather(bounds.expand(2, classes).contiguous()).view(-1, 2, classes).amax(0)
    equal = (highest == -negated).all()  # a NaN is not equal to itself
    *sums, constant = torch.cat([team.sum(totals), equal.float()[None]]).tolist()
    return _means(sums, images, split), bool(constant) and images > 1


def summarise(epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """A run's result: the figures of the last epoch, and beside them the best epoch's.

    The best epoch is that of the best validation accuracy where images were held out, else of the best test accuracy.
    """
    select = "validation_top1" if "validation_top1" in epochs[-1] else "test_top1"
    best = max(epochs, key=lambda figures: figures[select])
    last = {name: value for name, value in epochs[-1].items() if name != "epoch"}
    return {"epochs": len(epochs), **last, "best_epoch": best["epoch"], "best_epoch_test_top1": best["test_top1"]}


def _logits(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    with autocast(x.device, MIXED.get(precision)):
        return model(x).float()


def _totals(logits: Tensor, y: Tensor, loss: Tensor) -> Tensor:
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y.unsqueeze(1)
    return torch.stack([loss, hits[:, 0].sum(), hits.sum()])


def _means(totals: Sequence[float], images: int, split: str) -> dict[str, float]:
    loss, top1, top5 = totals
    return {f"{split}_loss": loss / images, f"{split}_top1": 100 * top1 / images, f"{split}_top5": 100 * top5 / images}


def check_finite(model: nn.Module, figures: dict[str, Any]) -> None:
    """Raise Diverged, naming the layer where it is one, for a NaN in what was trained or a figure not finite."""
    layer = find_nan(model)
    if layer is not None:
        raise Diverged(f"NaN in layer {layer!r} in epoch {figures['epoch']}")
    for name, value in figures.items():
        if not isfinite(value):
            raise Diverged(f"{name} is {value} in epoch {figures['epoch']}")

"""The training loop, read from top to bottom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import Dataset, Images, evaluation_batches, training_batches
from ..data.batches import evaluation_batch
from ..data.digest import DataDigest
from ..devices import keep_freed_memory, reproducible_kernels
from ..distributed import PartFailed, Team, launched, together
from ..given_masks import fixed_masks
from ..initial import empty_layers
from ..parametrization import find_nan
from ..redraw import Redraw
from ..signals import Stop, Stopped, say_also, stop_when_asked
from ..step_rules import StepRules
from .build import (
    begin_mask,
    build,
    check_begins,
    check_compiles,
    check_computes,
    check_fits,
    check_network,
    compiled,
    redraws,
    step_rules,
)
from .callbacks import Callback, Epoch, Progress, ProgressBar, Together
from .captured import CapturedStep
from .chain import RoundDiverged, begin_round
from .checkpoint import State, load_checkpoint
from .config import Run
from .log import DIVERGED, FINISHED
from .parts import check_parts
from .record import NoRecord, Record, summarise
from .recorded_data import OtherData, check_asked, check_data, has_begun
from .run_data import check_alike, decoders, kept_data, load_run_data
from .schedule import learning_rate, start_epoch, start_step
from .step import evaluate, means, train_step

CONSTANT = "the network gives the same logits for every test image"


class Diverged(ArithmeticError):
    """A loss, a weight or a score became NaN or infinite; the message names the epoch and the layer."""


def train(
    run: Run,
    folder: Path | str | None = None,
    dataset: Dataset | None = None,
    callbacks: Iterable[Callback] | None = None,
) -> dict[str, Any]:
    """Train one run in its folder, from its last checkpoint if there is one, and return its result.

    run: resolved (`Run.resolved`), or it is here. folder: by default `runs/` and the run's name, as the command `train`
    has it. dataset: the run's data if loaded already. callbacks: told as they say; by default a `ProgressBar`. The
    folder gets `config.json`, `environment.json`,
    `metrics.csv` (a row an epoch, after each), `layers.csv` (a row a layer and epoch), `trace.csv` (a row a layer and
    traced step, with `run.trace`), `checkpoint.pt`, TensorBoard events, `times.json`, and `result.json` when the run is
    finished, or has diverged: then its `status` says so and why, and there are no figures. It has a `note`, `CONSTANT`,
    where that is so in the last epoch.

    SIGINT and SIGTERM, in the main thread, end it after the step under way: the checkpoint is written as of then, and
    Stopped is raised. Raises ValueError for data and models that do not fit the run.

    Where torchrun has started several processes, the first calls this, and all train the run together.
    """
    if run.device == "auto" or run.compute == "auto" or not run.threads:
        run = run.resolved()
    folder = Path("runs") / run.name if folder is None else Path(folder)
    dataset = prepare(run, dataset)
    check_asked(run, dataset.digest)
    check_data(folder, run, dataset.digest)
    if has_begun(folder):
        check_parts(run, folder)
    else:
        check_begins(run, check_fits(run, dataset))
    record = Record(folder, run)
    try:
        with together(take_part, run, folder, device=torch.device(run.device)) as team:
            check_alike(team, run, dataset)
            with closing(ProgressBar()) as bar:
                return train_together(team, run, folder, dataset, record, [bar] if callbacks is None else callbacks)
    except PartFailed:
        raise
    except KeyboardInterrupt as end:
        say_also(end, record.where())
        raise


def take_part(run: Run, folder: Path, team: Team) -> None:
    """What another process than the first does in `train`; the folder is the first one's."""
    dataset = prepare(run, kept_data(run))
    check_alike(team, run, dataset)
    train_together(team, run, folder, dataset, NoRecord(), [])


def prepare(run: Run, dataset: Dataset | None = None) -> Dataset:
    """Set up this process for the run, and give its data on its device; ValueError for what cannot be."""
    if run.processes != launched().processes:
        raise ValueError(f"the run is one of {run.processes} processes, and {launched().processes} are here")
    torch.set_num_threads(run.threads)
    reproducible_kernels()
    keep_freed_memory()
    check_compiles(run)
    check_computes(run)
    if dataset is None:
        check_network(run)  # before what may take long
        dataset = load_run_data(run)
    dataset = dataset.to(torch.device(run.device)).decoded_by(decoders(run))
    check_fits(run, dataset)
    return replace(dataset.augmented(*run.augmentation), mix=run.mix)


def train_together(
    team: Team,
    run: Run,
    folder: Path,
    dataset: Dataset,
    record: Record | NoRecord,
    callbacks: Iterable[Callback],
) -> dict[str, Any]:
    """`train` in each process of a team. record: what to write, if anything; only the first reads the folder."""
    data = dataset.digest
    dataset, splits = split(run, dataset)
    state = resume(team, run, folder, dataset, record, data)
    model, optimizer, history, steps = state.model, state.optimizer, state.history, state.steps
    first, total = state.epoch, run.epochs * steps
    begins = Progress(first * steps + state.step, total)
    record.begin(state, begins)
    parallel = compiled(run, team.parallel(model, run.sync_bn))
    told, rules, redraw = Together(callbacks), step_rules(run, model, steps), redraws(run, model, steps)
    emptied = empty_layers(fixed_masks(model))
    with stop_when_asked(team.agree) as stop:
        told.run_begins(run, folder, begins, model)
        try:
            if state.lost:
                raise Diverged(state.lost)
            for epoch in range(first, run.epochs):
                for _ in steps_of(epoch, team, run, state, parallel, rules, dataset, stop, redraw):
                    state.trace.look(state.step)
                    told.step(run, Progress(epoch * steps + state.step, total))
                sums = team.sum(state.totals).tolist()
                figures = {"epoch": epoch + 1, **means(sums, steps * run.batch_size, "train")}
                team.level(model)
                of_splits, constant = evaluate_splits(team, run, model, splits, dataset, stop)
                figures |= of_splits
                check_finite(model, figures)
                layers, traced = state.log.measure(model, epoch + 1), state.trace.rows(epoch + 1)
                lr = learning_rate(run, epoch, (epoch + 1) * steps - 1, total) if optimizer else 0.0
                state.note = "; ".join(filter(None, (emptied, CONSTANT if constant else "")))
                state.end_epoch(epochs=[figures], layers=layers, trace=traced)
                done = Progress((epoch + 1) * steps, total), Epoch(figures, lr, layers, traced)
                record.end_epoch(state, *done)
                told.epoch(run, *done)
            result = {"status": FINISHED, **summarise(history["epochs"])}
            result |= {"note": state.note} if state.note else {}
        except Diverged as fault:
            result = {"status": f"{DIVERGED}: {fault}"}
        except Stopped as stopped:
            keep_steps(team, state, record, stopped)
            raise
        record.end(history, result)
        told.run_ends(run, result)
    return result


def steps_of(
    epoch: int,
    team: Team,
    run: Run,
    state: State,
    parallel: nn.Module,
    rules: StepRules | None,
    dataset: Dataset,
    stop: Stop,
    redraw: Redraw | None = None,
) -> Iterator[None]:
    """Train the steps of an epoch that are not done yet; yields after each. parallel: the model as it is called."""
    state.model.train()
    start_epoch(state.model, run, epoch)
    take = CapturedStep() if run.graph else train_step
    batches = training_batches(dataset, run.batch_size, run.seed, epoch, first=state.step, share=team.share)
    for x, y in stop.between(batches):
        done = epoch * state.steps + state.step
        start_step(state.optimizer, run, epoch, done, run.epochs * state.steps, team.rank)
        if rules:
            rules.before_step(done)
        if redraw:
            redraw.before_step(done)
        settings = run.precision, state.scaler, run.label_smoothing, rules, run.jsd
        state.totals += take(parallel, state.optimizer, x, y, *settings)
        state.step += 1
        yield


def network_at(step: int, team: Team, run: Run, dataset: Dataset) -> nn.Module:
    """The run's network as it is after so many of its steps, which are trained anew."""
    steps = len(dataset.train) // run.batch_size
    model, optimizer = build(run, dataset)
    if not step:
        return model
    state = State.begin(run, model, optimizer, steps)
    parallel, rules = compiled(run, team.parallel(model, run.sync_bn)), step_rules(run, model, steps)
    with stop_when_asked(team.agree) as stop:
        for epoch in range(ceil(step / steps)):
            state.step = 0
            for _ in steps_of(epoch, team, run, state, parallel, rules, dataset, stop):
                if epoch * steps + state.step == step:
                    break
            team.level(model)
    return model


def split(run: Run, dataset: Dataset) -> tuple[Dataset, dict[str, Images]]:
    """The data that the run trains on, and the images that it is evaluated on, by name; the test images come last."""
    if not run.holdout:
        return dataset, {"test": dataset.test}
    dataset, validation = dataset.hold_out(run.holdout)
    return dataset, {"validation": validation, "test": dataset.test}


def keep_steps(team: Team, state: State, record: Record | NoRecord, stopped: Stopped) -> None:
    """Write the checkpoint as of the step that a stop has come after; where that cannot be, `stopped` says so."""
    totals = team.gather(state.totals)
    try:
        record.keep_steps(state, totals)
    except OSError as fault:
        say_also(stopped, f"the steps since the last checkpoint are lost ({fault})")


def evaluate_splits(
    team: Team, run: Run, model: nn.Module, splits: dict[str, Images], dataset: Dataset, stop: Stop
) -> tuple[dict[str, float], bool]:
    """The figures of these splits, and whether all images of the last have equal logits; as `evaluate` has them."""
    figures: dict[str, float] = {}
    constant, size = False, evaluation_batch(dataset)
    for split, images in splits.items():
        batches = evaluation_batches(images, dataset, size, team.share)
        rounds = ceil(len(images) / (size * team.processes))
        of_split, constant = evaluate(model, stop.between(batches, rounds), split, run.precision, team)
        figures |= of_split
    return figures, constant


def resume(team: Team, run: Run, folder: Path, dataset: Dataset, record: Record | NoRecord, data: DataDigest) -> State:
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
        lost = ""
        if run.mask == "imp":
            try:
                begin_round(team, run, model, folder, dataset, data, lambda r, n: network_at(n, team, r, dataset))
            except RoundDiverged as fault:
                lost = str(fault)
        elif run.mask:
            begin_mask(run, model, dataset)
        state = State.begin(run, model, optimizer, steps)
        state.data, state.lost = data, lost
    if state.epoch < run.epochs:
        check_begins(run, model)
    return state


def check_finite(model: nn.Module, figures: dict[str, Any]) -> None:
    """Raise Diverged, naming the layer where it is one, for a NaN in what was trained or a figure not finite."""
    layer = find_nan(model)
    if layer is not None:
        raise Diverged(f"NaN in layer {layer!r} in epoch {figures['epoch']}")
    for name, value in figures.items():
        if not isfinite(value):
            raise Diverged(f"{name} is {value} in epoch {figures['epoch']}")

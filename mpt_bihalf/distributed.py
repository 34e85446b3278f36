"""Several processes that do one run together, as `torchrun` starts them.

The first of them (rank 0) does the command, and it alone prints and writes. The others follow: they wait for what it
asks of them, a part in each run (`together`), until it ends.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.futures import Future, collect_all
from torch.nn.parallel import DistributedDataParallel

from .batch_norm import synchronise_batch_norm
from .devices import accelerators, collective_backends, use_accelerator
from .signals import say_also

# Seconds between two looks for what the first process asks.
LOOK_AGAIN = 0.05
# Seconds in which what has failed in one process fails in the others too, if it does in all.
FAILS_TOO = 10.0
# The processes of a launch ask each other through torchrun's store: these are its keys.
CALLS, CALL, OVER, TOLD = "mpt_bihalf/calls", "mpt_bihalf/call/{}", "mpt_bihalf/over", "mpt_bihalf/told"
FAULT = "mpt_bihalf/fault/{}"  # of a call
HERE, LEFT = "mpt_bihalf/here/{}/{}", "mpt_bihalf/left/{}/{}"  # of a call, who has come and who has ended its part
# What a process that does not write can say of what is kept.
FROM_WHAT_THERE_IS = "the same command goes on from the last checkpoint, if there is one"


class Lost(KeyboardInterrupt):
    """Another process of the run has ended where it should not: a kill, or a machine that is gone."""


class PartFailed(Lost):
    """Some process could not do its part of a run while others could, which ends all; the message says why."""


@dataclass(frozen=True)
class Launch:
    """Which process this is of how many, of all and of those on this machine; both ranks are counted from 0."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    local_processes: int = 1


def launched() -> Launch:
    """This process as torchrun has started it; the only one, if it has not."""
    if not dist.is_torchelastic_launched():
        return Launch()
    return Launch(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


class Team:
    """The processes of a run as one of them sees the others. This is a run's only one: it has nobody to ask.

    rank: 0 for the process that prints and writes.
    """

    rank, processes = 0, 1

    @property
    def share(self) -> tuple[int, int]:
        """(rank, processes), which says what part of the images this process takes."""
        return self.rank, self.processes

    def agree(self, signum: int | None) -> int | None:
        """The highest signal that any process was sent by its last call, the same in all."""
        return signum

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Those of all processes, stacked by rank; of a single process as they are."""
        return values

    def spread(self, content: bytes | None) -> bytes | None:
        """What the first process has."""
        return content

    def parallel(self, model: nn.Module, sync_bn: bool = False) -> nn.Module:
        """The model with gradients that are means over the processes; its parameters become those of the first.

        sync_bn: whether its batch norm is to look at the whole batch.
        """
        return model

    def level(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers, the statistics of batch norm."""


ALONE = Team()


class _Several(Team):
    """One of several; they must all call the same methods in the same order."""

    def __init__(self, rank: int, processes: int) -> None:
        self.rank, self.processes = rank, processes
        self._asked: tuple[dist.Work | None, Tensor] | None = None

    def agree(self, signum: int | None) -> int | None:
        # The answer is that of the call before, which is here by now: so no step waits for another process.
        before = self.answer()
        flag = torch.tensor([signum or 0])
        self._asked = dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag
        return before

    def answer(self) -> int | None:
        """What is still to be heard of the last call of `agree`."""
        asked, self._asked = self._asked, None
        if asked is None:
            return None
        if asked[0] is not None:
            asked[0].wait()
        return int(asked[1]) or None

    def sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(self.processes)]
        dist.all_gather(parts, values)
        return torch.stack(parts)

    def spread(self, content: bytes | None) -> bytes | None:
        held = [content]
        dist.broadcast_object_list(held, device=torch.device("cpu"))
        return held[0]

    def parallel(self, model: nn.Module, sync_bn: bool = False) -> nn.Module:
        if sync_bn:
            synchronise_batch_norm(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        parallel = DistributedDataParallel(model)
        parallel.register_comm_hook(None, lambda _, bucket: _means(bucket, self.processes))
        parallel.broadcast_buffers = False  # `level` does it when it matters
        # Convolutions in channels-last make them for weights of one input channel; they are copied, as all are.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return parallel

    def level(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def lead(command: Callable[[], object]) -> None:
    """Do a command: in the first process of those that torchrun started, while the others follow; else just so."""
    if launched().rank == 0:
        command()
    else:
        try:
            _follow()
        except KeyboardInterrupt as end:
            say_also(end, FROM_WHAT_THERE_IS)
            raise


@contextmanager
def together(part: Callable[..., object], *arguments: Any, device: torch.device) -> Iterator[Team]:
    """The team for some work of the first process, in which the others do `part(*arguments, team)`.

    part: a function at the top of a module; it gets what can be pickled. device: where the work's tensors are.
    An error of all processes is raised as it is; one of some of them as PartFailed, and where one is gone Lost.
    """
    launch = launched()
    if launch.processes == 1:
        yield ALONE
        return
    if launch.rank:
        raise RuntimeError("under torchrun a program must be run by mpt_bihalf.commandline.run_command(main)")
    # Whoever can write to torchrun's store is trusted by torchrun itself, which unpickles what it finds there.
    call = _store().add(CALLS, 1)  # the number by which all know it
    _store().set(CALL.format(call), pickle.dumps((part, arguments, device)))  # type: ignore[arg-type]
    with _joined(call, device) as team:
        yield team


def typed_command() -> list[str]:
    """The command that started this program, torchrun's where it did, as its arguments."""
    launch = launched()
    if launch.processes == 1:
        return list(sys.orig_argv)
    python, *arguments = sys.orig_argv
    nodes = launch.processes // launch.local_processes
    where = ["--standalone"] if nodes == 1 else ["--nnodes", str(nodes)]
    start = [python, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(launch.local_processes)]
    return [*start, *(arguments[1:] if arguments[0] == "-u" else arguments)]  # torchrun adds -u


def is_to_tell() -> bool:
    """Whether this process is to tell the user why all end. They all hear of it, and one line is enough.

    That is the first, which knows what is kept; where it has not done so in time, another one, which waits for it.
    """
    launch = launched()
    if launch.processes == 1:
        return True
    try:
        if launch.rank == 0:
            return not _store().check([TOLD])
        return not _is_set([OVER], FAILS_TOO) and _store().add(TOLD, 1) == 1
    except dist.DistError:  # the store is gone, and its machine: one process of each other machine tells
        return launch.local_rank == 0


@contextmanager
def over_when_told() -> Iterator[None]:
    """Within, the first process does its command and tells how that ended; it is over for the others then."""
    try:
        yield
    finally:
        launch = launched()
        if launch.processes > 1 and launch.rank == 0:
            with suppress(dist.DistError):
                _store().set(OVER, "")


@cache
def _store() -> dist.Store:
    store: dist.Store = next(rendezvous("env://"))[0]
    return store


def _means(bucket: dist.GradBucket, processes: int) -> Future[Tensor]:
    """The gradients of a bucket as means over the processes, those of each parameter by themselves.

    After a first step torch puts the parameters into other buckets, and the rounding of a sum of three or more depends
    on the place in what is summed at once: the first step after a resume would have other bits.
    """
    gradients = bucket.buffer().div_(processes)
    parts = gradients.split([parameter.numel() for parameter in bucket.parameters()])
    works = [dist.all_reduce(part, async_op=True) for part in parts]
    return collect_all([work.get_future() for work in works if work is not None]).then(lambda _: gradients)


def _follow() -> None:
    """Do what the first process asks until it ends."""
    ended: KeyboardInterrupt | None = None  # a part that was not done to its end, as the first process will tell
    for call in count(1):
        try:
            content = _await(CALL.format(call))
        except KeyboardInterrupt:
            if ended is not None:
                raise ended from None
            raise
        if content is None:
            return
        part, arguments, device = pickle.loads(content)
        ended = None
        try:
            with _joined(call, device) as team:
                part(*arguments, team)
        except KeyboardInterrupt as end:
            ended = end
            if isinstance(end, Lost) and not _have_left(call, [0]):
                raise
        except Exception:  # the first process tells it, and goes on or ends
            pass


def _have_left(call: int, ranks: Iterable[int], seconds: float = 0.001) -> bool:
    """Whether these processes have ended their part of this work, or do so within that time."""
    return _is_set([LEFT.format(call, rank) for rank in ranks], seconds)


def _is_set(keys: list[str], seconds: float) -> bool:
    """Whether all of these keys are set, or are within that time."""
    try:
        _store().wait(keys, timedelta(seconds=seconds))
    except dist.DistError:
        return False
    return True


def _await(key: str) -> bytes | None:
    """What the first process sets, however long that takes; None where it is over."""
    with suppress(dist.DistError):
        while not _store().check([key]):
            if _store().check([OVER]):
                return None
            time.sleep(LOOK_AGAIN)
        return _store().get(key)
    return None  # the store has gone with the first process


@contextmanager
def _joined(call: int, device: torch.device) -> Iterator[Team]:
    """The processes of this launch as a team for one piece of work."""
    try:
        with _group(call, device) as team:
            yield team
    except KeyboardInterrupt as end:
        # torchrun ends the others by a signal, which may come just when torch has raised for the one that is gone.
        if not isinstance(end, Lost) and any(map(_by_others, _before(end))):
            _lost(call)
        raise


@contextmanager
def _group(call: int, device: torch.device) -> Iterator[Team]:
    launch, store = launched(), _store()
    if launch.local_rank < accelerators():
        use_accelerator(launch.local_rank)
    team = _Several(launch.rank, launch.processes)
    # Once torch waits for somebody who never comes, no signal ends it.
    store.set(HERE.format(call, launch.rank), "")
    while not store.check([HERE.format(call, rank) for rank in range(launch.processes)]):
        time.sleep(LOOK_AGAIN)
    try:
        dist.init_process_group(
            collective_backends(device),
            store=dist.PrefixStore(CALL.format(call) + "/group", store),
            rank=launch.rank,
            world_size=launch.processes,
        )
        yield team
        team.answer()
    except Exception as fault:
        if _by_others(fault):
            _lost(call)
        what = f"{type(fault).__name__}: {fault}"
        if launch.rank:
            store.set(FAULT.format(call), what)
        store.set(LEFT.format(call, launch.rank), "")
        if _have_left(call, range(launch.processes), FAILS_TOO):
            raise
        # The others wait for this process in a collective, which nothing breaks but its end.
        if launch.rank:
            sys.exit(1)
        raise PartFailed(f"the first process of the run failed: {what}") from fault
    finally:
        with suppress(dist.DistError):
            store.set(LEFT.format(call, launch.rank), "")
        if dist.is_initialized():
            dist.destroy_process_group()


def _before(fault: BaseException) -> Iterator[BaseException]:
    """What was being handled when this was raised, and so on."""
    while fault.__context__ is not None:
        fault = fault.__context__
        yield fault


def _by_others(fault: BaseException) -> bool:
    """Whether this is what torch raises where another process has left."""
    return isinstance(fault, dist.DistError) or (type(fault) is RuntimeError and "gloo" in str(fault))


def _lost(call: int) -> NoReturn:
    """Raise for another process that has left its part: it failed and said so, or it is gone."""
    fault = None
    with suppress(dist.DistError):
        fault = _store().get(FAULT.format(call)).decode() if _store().check([FAULT.format(call)]) else None
    if fault is not None and launched().rank == 0:
        raise PartFailed(f"another process of the run failed: {fault}") from None
    raise Lost("another process of the run was killed") from None

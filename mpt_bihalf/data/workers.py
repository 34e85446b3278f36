"""Worker processes that leave signals to the process they work for, and end with it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from .dataset import DataError

ENDING = {signal.SIGINT, signal.SIGTERM}


def computed(items: Any, workers: int, ready: int, pinned: bool) -> Iterator[Any]:
    """items[0], items[1], ... in order, each worked out by one of the worker processes, or by this one for 0.

    ready: so many lie ready at most, but two a worker at least. pinned: their tensors come in pinned memory, for an
    accelerator to copy from. The workers live from the first item asked for to the last, or until the iterator is
    closed or forgotten. Draws nothing from torch's global generator.

    Raises DataError where a worker died of itself.
    """
    workers = min(workers, len(items))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than there are cores: as asked
        # By fork where that is safe: a worker is there at once, with nothing to import.
        loader = DataLoader(
            items,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=max(2, -(-ready // workers)) if workers else None,
            pin_memory=pinned,
            worker_init_fn=partial(_begin, os.getpid()),
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),
        )
        with _unheard():
            arriving = iter(loader)
    try:
        yield from arriving
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that decodes images died ({error}), perhaps for want of memory or of space in /dev/shm: "
            "the same command goes on; fewer --workers need less"
        ) from error


@contextmanager
def _unheard() -> Iterator[None]:
    """Within, no signal asks this thread to end, nor ever a process that it starts: that inherits this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    # torch would raise for a dead worker wherever this process happens to be, rather than where it waits for it.
    on_death = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, on_death or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(main: int, worker: int) -> None:
    """In a new worker of process `main`: end when that does, or asks for it by SIGTERM; nobody else may."""
    warnings.filterwarnings("ignore", module="PIL")  # of a file's metadata; ImageNet has some odd ones
    if sys.platform != "linux":  # torch looks every few seconds whether `main` is still there
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        return
    death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
    if os.getppid() != main:  # it died before
        os._exit(1)
    threading.Thread(target=_heed, args=[main], daemon=True).start()


def _heed(main: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)

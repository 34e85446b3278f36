"""What an engine is: something that does runs, here or elsewhere, one or several at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from ...distributed import launched
from ...training import Callback, Epoch, Progress, Run
from ..work import Outcome

Event = Outcome | tuple[Run, Progress] | tuple[Run, Progress, Epoch]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where runs are done, and how many at a time."""

    engine: str = ""
    """local: worker processes on this machine (the default); ray: a Ray cluster; serial: in this very process, for a
    debugger and for methods or networks that a program of yours registers (the default under torchrun, whose processes
    do each run together)"""
    jobs: int | None = None
    """runs at a time (default: what the cores have room for, with local 8 at most; on accelerators --runs-per-device
    times their number)"""
    runs_per_device: int = 1
    """runs that share an accelerator, where there are any"""
    address: str = ""
    """of the Ray cluster, e.g. auto or ray://head:10001; without it Ray is started on this machine"""

    @property
    def chosen(self) -> str:
        """The engine's name, also where none was given."""
        return self.engine or ("serial" if launched().processes > 1 else "local")


class Engine(ABC):
    """Made for the runs of one sweep, of which it is then asked to do some, or all."""

    told: Callback = Callback()
    """whom a run that is done in this very process tells how far it is; the sweep sets it"""

    @abstractmethod
    def __init__(self, out: Path, runs: list[Run], options: EngineOptions) -> None:
        """out: the sweep's folder, absolute. Raises ValueError for options that cannot be."""

    @abstractmethod
    def do(self, runs: list[Run]) -> Generator[Event]:
        """Do these runs by `perform`, in about this order: the outcome of each once, and before it, of runs in other
        processes, `(run, progress)` as it begins and goes on, and `(run, progress, epoch)`.

        Closing the iterator ends the runs under way, with what they have done kept.
        """

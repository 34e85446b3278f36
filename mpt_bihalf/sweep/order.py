"""In which order runs are handed out: a round of iterative pruning when the one before it is done."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from ..training import Run
from ..training.chain import parent_of
from .work import Outcome, failed


class Order:
    """The runs that an engine is to do, in the order given as far as rounds need not wait. Threads may share one.

    out: the sweep's folder, where it is written why a round cannot begin.
    """

    def __init__(self, runs: Iterable[Run], out: Path) -> None:
        self._left, self._out = list(runs), out
        self._open = set(self._left)  # not ended
        self._changed = threading.Condition(threading.RLock())
        self._closed = False

    def take(self) -> Run | None:
        """The next run, waited for while all that are left wait for others; None where none is left."""
        with self._changed:
            while self._left and not self._closed:
                run = self._next()
                if run is not None:
                    return run
                self._changed.wait()
            return None

    def poll(self) -> Run | None:
        """The next run; None where none can begin now."""
        with self._changed:
            return self._next()

    def end(self, outcome: Outcome) -> list[Outcome]:
        """A run has ended: the outcomes of it and of those that now cannot begin, in this order of rounds."""
        with self._changed:
            self._open.discard(outcome.run)
            ended = [outcome]
            if outcome.result is None:
                rounds = [run for run in self._left if parent_of(run) == outcome.run]
                self._left = [run for run in self._left if run not in rounds]
                # What somebody else does is waited for, with all that comes after it.
                why = f"the round before, {outcome.run.name}, failed" if outcome.error else ""
                for run in rounds:
                    ended += self.end(failed(run, self._out, why) if why else Outcome(run))
            self._changed.notify_all()
            return ended

    def close(self) -> None:
        """Hand out no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> Run | None:
        for place, run in enumerate(self._left):
            if parent_of(run) not in self._open:
                return self._left.pop(place)
        return None

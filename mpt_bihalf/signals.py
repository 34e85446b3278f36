"""Signals that ask for an end, turned into something that a loop can look at when it suits it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")


class Stopped(KeyboardInterrupt):
    """A signal asked for an end. signum: which one; the text, if any: what is not as one would expect then."""

    def __init__(self, signum: int, text: str = "") -> None:
        super().__init__(text)
        self.signum = signum

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signum, str(self))  # it may have to reach another process


class Stop:
    """Whether an end was asked for, and by which signal."""

    signum: int | None = None

    def check(self) -> None:
        """Raise Stopped if an end was asked for."""
        if self.signum is not None:
            raise Stopped(self.signum)

    def between(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with a check before each."""
        for item in items:
            self.check()
            yield item


@contextmanager
def stop_when_asked() -> Iterator[Stop]:
    """Within, SIGINT and SIGTERM only ask for an end, in the main thread; a second SIGINT raises KeyboardInterrupt.

    The work within looks at the `Stop` given. If it ends without having done so, Stopped is raised after it.
    """
    stop = Stop()

    def ask(signum: int, _: FrameType | None) -> None:
        if signum == stop.signum == signal.SIGINT:
            raise KeyboardInterrupt
        if stop.signum is None or signum == signal.SIGINT:
            stop.signum = signum

    with _handling(ask, signal.SIGINT, signal.SIGTERM):
        yield stop
    stop.check()


@contextmanager
def raise_when_terminated() -> Iterator[None]:
    """Within, SIGTERM raises Stopped in the main thread, as SIGINT raises KeyboardInterrupt."""

    asked: list[int] = []

    def end(signum: int, _: FrameType | None) -> None:
        asked.append(signum)
        raise Stopped(signum)

    with _handling(end, signal.SIGTERM):
        try:
            yield
        except KeyboardInterrupt as stop:
            if asked and not isinstance(stop, Stopped):  # compiled code may have made it a plain one on its way
                raise Stopped(asked[0]) from stop
            raise


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None], *signums: int) -> Iterator[None]:
    """Handle these signals so, where this is the main thread; one that is ignored stays ignored, as `nohup` needs."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.getsignal(signum) for signum in signums}
        before = {signum: old for signum, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for signum in before:
            signal.signal(signum, handler)
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)

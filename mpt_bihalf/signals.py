"""Signals that ask for an end, turned into something that a loop can look at when it suits it."""

from __future__ import annotations

import os
import signal
import sys
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


# Seconds until a signal comes again that was not heard.
AGAIN = 0.05
FROM_HERE = "the same command goes on from here"


def say_also(end: KeyboardInterrupt, text: str) -> None:
    """Add to what an end says; where there is nothing to add to, `FROM_HERE` goes without saying."""
    if str(end) or text != FROM_HERE:
        end.args = ("; ".join(filter(None, [str(end), text])),)


def asked_to_end(fault: BaseException | None) -> KeyboardInterrupt | None:
    """What asked for an end, where that is why this was raised: cleaning up may have made another error of it."""
    while fault is not None and not isinstance(fault, KeyboardInterrupt):
        fault = fault.__context__
    return fault


Agree = Callable[[int | None], int | None]


class Stop:
    """Whether an end was asked for, and by which signal.

    agree: of the signal that this process was sent, if any, makes the one that all processes of the work go by.
    """

    signum: int | None = None

    def __init__(self, agree: Agree = lambda signum: signum) -> None:
        self._agree = agree

    def check(self) -> None:
        """Raise Stopped if an end was asked for."""
        signum = self._agree(self.signum)
        if signum is not None:
            raise Stopped(signum)

    def between(self, items: Iterable[Item], checks: int = 0) -> Iterator[Item]:
        """The items, with a check before each, and in the end more up to `checks`: others may have more items."""
        for item in items:
            self.check()
            checks -= 1
            yield item
        for _ in range(checks):
            self.check()


@contextmanager
def stop_when_asked(agree: Agree = lambda signum: signum) -> Iterator[Stop]:
    """Within, SIGINT and SIGTERM only ask for an end, in the main thread; a second SIGINT raises KeyboardInterrupt.

    The work within looks at the `Stop` given. If it ends without having done so, Stopped is raised after it. agree: see
    `Stop`; it may answer one check later.
    """
    stop = Stop(agree)

    def ask(signum: int, _: FrameType | None) -> None:
        if signum == stop.signum == signal.SIGINT:
            raise KeyboardInterrupt
        if stop.signum is None or signum == signal.SIGINT:
            stop.signum = signum

    with _handling(ask, signal.SIGINT, signal.SIGTERM):
        yield stop
    for _ in range(2):  # with others it may take a second to hear of what came last
        stop.check()


@contextmanager
def raise_when_terminated() -> Iterator[None]:
    """Within, SIGTERM raises Stopped in the main thread, as SIGINT raises KeyboardInterrupt.

    While such an end is under way, another SIGTERM changes nothing: it would only hide why, and what is kept.
    """

    asked: list[int] = []

    def end(signum: int, _: FrameType | None) -> None:
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            return
        asked.append(signum)
        raise Stopped(signum)

    with _handling(end, signal.SIGTERM), _come_again():
        try:
            yield
        except KeyboardInterrupt as stop:
            if asked and type(stop) is KeyboardInterrupt:  # compiled code may have made it a plain one on its way
                raise Stopped(asked[0]) from stop
            raise


@contextmanager
def _come_again() -> Iterator[None]:
    """Within, a signal comes again that was heard where nothing may raise, as in the callback of a weak reference."""
    before = sys.unraisablehook

    def look(found: sys.UnraisableHookArgs) -> None:
        if not isinstance(found.exc_value, KeyboardInterrupt):
            before(found)
            return
        signum = getattr(found.exc_value, "signum", signal.SIGINT)
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), signum))
        again.daemon = True
        again.start()

    sys.unraisablehook = look
    try:
        yield
    finally:
        sys.unraisablehook = before


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

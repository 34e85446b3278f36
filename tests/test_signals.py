from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from mpt_bihalf.signals import FROM_HERE, Stop, Stopped, raise_when_terminated, say_also, stop_when_asked

ASKING = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, SIGTERM kills: also where whoever started the tests wants it otherwise."""
    before = {signum: signal.getsignal(signum) for signum in ASKING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", ASKING)
def test_a_loop_ends_between_two_items_once_asked(signum: int) -> None:
    seen = []

    def work(stop: Stop) -> None:
        for item in stop.between(range(5)):
            seen.append(item)
            if item == 2:
                send(signum)
            seen.append(item)

    with pytest.raises(Stopped) as end, stop_when_asked() as stop:
        work(stop)
    assert (end.value.signum, seen) == (signum, [0, 0, 1, 1, 2, 2])


def test_a_loop_goes_by_what_all_agree_on_and_makes_as_many_checks_as_another() -> None:
    told: list[int | None] = [None, None, None, signal.SIGTERM]
    seen: list[str] = []
    stop = Stop(agree=lambda signum: told.pop(0))
    with pytest.raises(Stopped) as end:
        seen.extend(stop.between("ab", checks=5))
    assert (seen, end.value.signum, told) == (["a", "b"], signal.SIGTERM, [])


def test_an_answer_that_comes_a_check_later_is_waited_for_in_the_end() -> None:
    before: list[int | None] = [None]

    def agree(signum: int | None) -> int | None:
        before.append(signum)
        return before.pop(0)

    def work() -> None:
        with stop_when_asked(agree) as stop:
            stop.check()
            send(signal.SIGTERM)

    with pytest.raises(Stopped):
        work()


@pytest.mark.parametrize("signum", ASKING)
def test_what_nobody_looked_at_is_not_lost(signum: int) -> None:
    done = []

    def work() -> None:
        with stop_when_asked():
            send(signum)
            done.append(1)

    with pytest.raises(Stopped) as end:
        work()
    assert (end.value.signum, done) == (signum, [1])


def test_an_error_within_comes_first() -> None:
    def work() -> None:
        with stop_when_asked():
            send(signal.SIGTERM)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()


@pytest.mark.parametrize(
    ("signals", "raised"),
    [
        ([signal.SIGINT] * 2, KeyboardInterrupt),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGINT], KeyboardInterrupt),
        ([signal.SIGTERM] * 3, None),
        ([signal.SIGINT, signal.SIGTERM, signal.SIGTERM], None),
        ([signal.SIGTERM, signal.SIGINT], None),  # as both reach a worker when its terminal is interrupted
    ],
)
def test_a_second_interrupt_does_not_wait_and_termination_does(
    signals: list[int], raised: type[BaseException] | None
) -> None:
    at_once: list[type[BaseException] | None] = []

    def work() -> None:
        with stop_when_asked():
            try:
                for signum in signals:
                    send(signum)
                at_once.append(None)
            except KeyboardInterrupt as fault:
                at_once.append(type(fault))

    with pytest.raises(Stopped):
        work()
    assert at_once == [raised]


def test_termination_on_top_of_an_end_changes_nothing() -> None:
    end = KeyboardInterrupt("another process is gone")

    def work() -> None:
        try:
            raise end
        finally:
            send(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt) as told, raise_when_terminated():
        work()
    assert told.value is end


def test_termination_ends_what_mends_another_fault() -> None:
    def work() -> None:
        try:
            raise ValueError
        except ValueError:
            send(signal.SIGTERM)

    with pytest.raises(Stopped), raise_when_terminated():
        work()


def test_what_an_end_says_is_added_to() -> None:
    end = Stopped(signal.SIGTERM)
    say_also(end, FROM_HERE)
    assert str(end) == ""
    say_also(end, "half is lost")
    say_also(end, FROM_HERE)
    assert str(pickle.loads(pickle.dumps(end))) == f"half is lost; {FROM_HERE}"


def test_the_handlers_are_those_of_before_again() -> None:
    def mine(*_: Any) -> None: ...

    signal.signal(signal.SIGTERM, mine)
    before = [signal.getsignal(signum) for signum in ASKING]
    with stop_when_asked():
        assert [signal.getsignal(signum) for signum in ASKING] != before
    with pytest.raises(ValueError, match="x"), stop_when_asked():
        raise ValueError("x")
    assert [signal.getsignal(signum) for signum in ASKING] == before


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_when_asked() as stop:
        send(signal.SIGINT)
        stop.check()


def test_in_another_thread_the_handlers_are_left_alone() -> None:
    told: list[Any] = []

    def work() -> None:
        with stop_when_asked() as stop, raise_when_terminated():
            told.append([signal.getsignal(signum) for signum in ASKING])
            told.append(list(stop.between("ab")))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [[signal.default_int_handler, signal.SIG_DFL], ["a", "b"]]


def test_termination_raises_within_a_command_except_where_the_work_only_notes_it() -> None:
    done = []

    def command() -> None:
        with raise_when_terminated():
            with suppress(Stopped), stop_when_asked():
                send(signal.SIGTERM)
                done.append(1)
            send(signal.SIGTERM)
            done.append(2)

    with pytest.raises(Stopped) as end:
        command()
    assert (end.value.signum, done) == (signal.SIGTERM, [1])
    assert isinstance(end.value, KeyboardInterrupt)


def test_stopped_reaches_another_process_as_it_is() -> None:
    there = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM, "half is lost")))
    assert (there.signum, str(there)) == (signal.SIGTERM, "half is lost")


@pytest.mark.parametrize(("signum", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_that_comes_where_nothing_may_raise_comes_again(
    signum: int, kind: type[KeyboardInterrupt], capsys: pytest.CaptureFixture[str]
) -> None:
    class Thing:
        pass

    def work() -> None:
        thing = Thing()
        watched = weakref.ref(thing, lambda _: send(signum))
        del thing
        assert watched() is None
        time.sleep(60)

    hook = sys.unraisablehook
    with pytest.raises(kind), raise_when_terminated():
        work()
    assert sys.unraisablehook is hook
    assert capsys.readouterr().err == ""

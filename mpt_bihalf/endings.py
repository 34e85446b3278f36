"""How a command speaks and ends: plain text, one line for an error, and an exit status that says what it was.

Nothing but Python's own modules is imported at the top, so that this is there before what takes a second to import.
"""

from __future__ import annotations

import codecs
import errno
import gc
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO

from .signals import FROM_HERE, asked_to_end, raise_when_terminated

# What our own text has beyond ASCII, where a terminal takes nothing else.
IN_ASCII = {"±": "+-", "…": "..."}

__all__ = ["run_command", "show", "tell"]


class CommandFailed(Exception):
    """A command could not do all that it was asked for, by no fault of who asked: one line and exit status 1."""


def show(text: str = "") -> None:
    """Print text, of any number of lines, without anything that would steer the terminal; above bars, as `tell`."""
    try:
        _write(plain(text), sys.stdout)
        sys.stdout.flush()
    except OSError as fault:
        fault.filename = "standard output"
        raise


def tell(text: object, longest: int = 2000) -> None:
    """One line on standard error, above the progress bars if there are any."""
    _write(one_line(text, longest), sys.stderr)


def _write(text: str, file: TextIO) -> None:
    bars: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if getattr(bars, "_instances", ()):  # else it may not be all there yet, for want of memory
        bars.write(text, file=file)
    else:
        print(text, file=file)


def fail(message: str, status: int = 2) -> NoReturn:
    """One line on standard error, and the exit status, 2 for what a user can mend."""
    with suppress(OSError):  # nobody reads it
        tell(f"error: {message}")
    sys.exit(status)


def plain(text: str) -> str:
    """The text with a space in the place of each character that would steer a terminal; line breaks stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


def one_line(text: object, longest: int = 200) -> str:
    """Foreign text as a line may show it: without line breaks or anything else that would steer the terminal."""
    line = " ".join(plain(str(text)[: 10 * longest]).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def wants_memory(fault: BaseException) -> bool:
    """Whether this was raised for want of memory, of the host or of a device."""
    torch: Any = sys.modules.get("torch")
    kinds = (MemoryError, *([torch.OutOfMemoryError] if hasattr(torch, "OutOfMemoryError") else []))
    words = ("can't allocate memory", "failed to map segment")  # torch's allocator, and the loader of libraries
    told = getattr(fault, "errno", 0) == errno.ENOMEM or any(some in str(fault) for some in words)
    return told or isinstance(fault, kinds)


@contextmanager
def starting(module: str = "") -> Iterator[None]:
    """Around the imports of a command, which take seconds: an interrupt ends them in one line, as does what they raise.

    It also puts something in the place of standard streams that are closed, before a file takes their number.
    module: the name of the one that imports; for `__main__` all this holds until `run_command` does.
    """
    _open_streams()
    os.environ["MPLBACKEND"] = "agg"  # figures go to files alone, and matplotlib refuses to load with an unknown one
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of where it has its cache
    before = signal.getsignal(signal.SIGINT)
    main_thread = threading.current_thread() is threading.main_thread()
    ours = main_thread and before in (signal.default_int_handler, _leave)
    if ours:  # not by an exception: of that a half-loaded extension module makes another one, or nothing
        signal.signal(signal.SIGINT, _leave)
    gc.disable()  # what imports make stays to the end: looking through it again and again takes an eighth of their time
    try:
        yield
    except Exception as fault:
        _fail_by(fault)
        raise
    finally:
        gc.freeze()
        gc.enable()
        if ours and module != "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)


def run_command(command: Callable[[], object]) -> None:
    """Run a command; what a user can mend ends it in one line and exit status 2, a signal with 128 and its number."""
    with starting("__main__"):
        from .distributed import PartFailed, is_to_tell, lead, over_when_told
    # Twice: one that comes while the end is told must not cut that short.
    with over_when_told(), raise_when_terminated():
        try:
            if signal.getsignal(signal.SIGINT) is _leave:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            with raise_when_terminated():
                lead(command)
            sys.stdout.flush()
        except (CommandFailed, PartFailed) as fault:
            fail(str(fault), status=1)
        except (KeyboardInterrupt, Exception) as fault:
            stop = asked_to_end(fault)
            if stop is not None:
                with suppress(OSError):  # nobody reads it
                    if is_to_tell():
                        tell(f"interrupted: {str(stop) or FROM_HERE}")
                sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
            if isinstance(fault, BrokenPipeError) and _nobody_reads():
                sys.exit(1)
            _fail_by(fault)
            raise
        finally:
            _let_go()


def _fail_by(fault: BaseException) -> None:
    """End the program where the fault lies outside it; return where it does not."""
    if wants_memory(fault):
        fail(f"out of memory: {str(fault) or type(fault).__name__}", status=1)
    if isinstance(fault, ValueError | OSError):
        fail(str(fault))


def _leave(signum: int, _: FrameType | None) -> NoReturn:
    """End at once, and say so once, of however many processes torchrun has started."""
    with suppress(OSError):
        if os.environ.get("RANK", "0") == "0":
            os.write(2, b"interrupted: nothing was begun\n")
    os._exit(128 + signum)


def _nobody_reads() -> bool:
    """Whether standard output or error is a pipe whose reader has seen enough and is gone."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _open_streams() -> None:
    """Have all three standard streams: what is told to one that was closed goes nowhere, and into no file either."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, number)
            if nothing != number:
                os.close(nothing)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    codecs.register_error("mpt_bihalf", _spelt)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="mpt_bihalf")


def _spelt(fault: UnicodeError) -> tuple[str, int]:
    """What stands for letters that a stream's encoding has not."""
    if not isinstance(fault, UnicodeEncodeError):
        raise fault
    return "".join(IN_ASCII.get(letter, "?") for letter in fault.object[fault.start : fault.end]), fault.end


def _let_go() -> None:
    """Leave nothing for the interpreter's end that it would stumble over: what nobody takes any more goes nowhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

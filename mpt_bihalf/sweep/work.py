"""What is done with one run of a sweep, in whatever process an engine does it."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..endings import wants_memory
from ..files import refuse_links, remove_leftovers, write_json
from ..plugins import MODULE_NAME
from ..signals import asked_to_end
from ..training import Callback, Run, train
from ..training.run_data import kept_data
from .claim import claimed
from .records import FAILURE, read_result, run_folder


class Outcome(NamedTuple):
    """How an attempt at a run ended: with a result, with an error, or with neither, as somebody else is doing it."""

    run: Run
    result: dict[str, Any] | None = None
    error: str = ""


def perform(run: Run, out: Path, callbacks: Iterable[Callback] = ()) -> Outcome:
    """Do a run below `out`, unless it is done already or somebody else's; its folder says why where it failed.

    callbacks: told while it is trained.
    """
    folder = run_folder(out, run)
    try:
        refuse_links(folder, out)
        with suppress(OSError):  # as the claim will tell
            result = read_result(folder, run)
            if result is not None:  # somebody else's by now
                return Outcome(run, result)
        with claimed(folder) as ours:
            if not ours:
                return Outcome(run)
            result = read_result(folder, run)
            if result is None:
                result = train(run, folder, kept_data(run), callbacks)
            (folder / FAILURE).unlink(missing_ok=True)
            remove_leftovers(folder / FAILURE)
            return Outcome(run, result)
    except Exception as fault:
        stop = asked_to_end(fault)
        if stop is not None:
            raise stop from None
        return failed(run, out, _told(fault), traceback.format_exc())


def failed(run: Run, out: Path, error: str, trace: str = "") -> Outcome:
    """The outcome of a run that ended with this error, which is left in the run's folder where that can be written.

    Not where somebody else does the run meanwhile, or has done it.
    """
    error = " ".join(error.split())
    folder = run_folder(out, run)
    with suppress(OSError, ValueError):
        refuse_links(folder, out)
        with claimed(folder) as ours:
            if ours and read_result(folder, run) is None:
                write_json(folder / FAILURE, {"error": error, "traceback": trace, "when": time.time()})
    return Outcome(run, error=error)


def _told(fault: Exception) -> str:
    text = f"{str(fault) or type(fault).__name__}{_place(fault)}"
    if wants_memory(fault):
        return f"out of memory: {text}"
    return text if isinstance(fault, OSError | ValueError) else f"{type(fault).__name__}: {text}"


def _place(fault: Exception) -> str:
    """The last line of a plugin that the fault came through, in parentheses; empty where there is none."""
    own = {str(sys.modules[name].__file__) for name in list(sys.modules) if name.startswith(MODULE_NAME)}
    places = [frame for frame in traceback.extract_tb(fault.__traceback__) if frame.filename in own]
    return f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""

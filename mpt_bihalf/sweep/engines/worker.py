"""A process that does runs one after the other, as the local engine asks it to.

It reads a line of JSON for each run, its configuration, and answers with lines of JSON: lists while it trains, as
`Sender` has them, then `{"result": ..., "error": ...}`. When nobody is left to read them it stops, with what it has
done kept.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from ...devices import use_accelerator
from ...endings import fail, tell
from ...plugins import load_plugins
from ...signals import Stopped
from ...training import Run
from ...training.callbacks import Sender
from ..work import perform


def work(out: str, accelerator: int | None, plugins: str) -> None:
    """Do what standard input asks for, below `out`, on the accelerator of this number, if any, with these plugins."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything else prints is no answer
    # Not by sys.stdin: a thread that waits there holds its lock, and a process forked to decode images closes it first.
    asked = os.fdopen(os.dup(0))
    if accelerator is not None:
        use_accelerator(accelerator)
    try:
        load_plugins(json.loads(plugins))
    except ValueError as fault:
        fail(str(fault))
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=[asked, lines], daemon=True).start()

    def answer(content: Any) -> None:
        with suppress(BrokenPipeError):  # then nobody listens any more either
            answers.write(json.dumps(content) + "\n")
            answers.flush()

    while line := lines.get():
        try:
            run = Run.from_dict(json.loads(line))
        except ValueError as fault:  # of a part that the sweep's own program alone has registered
            answer({"result": None, "error": f"{fault} (a worker has what plugins register; or take --engine serial)"})
            continue
        try:
            outcome = perform(run, Path(out), [Sender(answer)])
        except Stopped as stopped:
            if text := str(stopped):
                tell(text)
            sys.exit(128 + stopped.signum)
        except KeyboardInterrupt:  # asked a second time
            sys.exit(128 + signal.SIGINT)
        answer({"result": outcome.result, "error": outcome.error})


def _listen(asked: TextIO, lines: SimpleQueue[str]) -> None:
    while line := asked.readline():
        lines.put(line)
    lines.put("")
    os.kill(os.getpid(), signal.SIGTERM)  # the engine has ended: training, if there is any, stops after its step

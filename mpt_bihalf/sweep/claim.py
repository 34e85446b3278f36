"""Claims: of all that may want to do a run, on one machine or on several with a shared folder, one does it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..files import read_json, write_json

with suppress(ImportError):  # Windows
    import fcntl

LOCK, CLAIM = "claim.lock", "claim.json"
# Seconds between two tries at a lock that others only look at, and in which they have done so.
LOOK_AGAIN, LOOKED = 0.001, 60.0


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the run of this folder is ours to do, for as long as the context lasts.

    The claim is a lock that the system takes back from a holder that dies, however it dies; a shared file system must
    keep locks (flock) for that, as NFS 4 does. `claim.json` tells who holds it. The folder is made if need be. Raises
    OSError where it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    until = time.monotonic() + LOOKED
    while not lock.is_locked:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if held(folder) or time.monotonic() > until:
                yield False
                return
            time.sleep(LOOK_AGAIN)  # it was somebody who looked, as `held` does
        except NotImplementedError as fault:
            raise OSError(f"{folder / LOCK} cannot be locked: {fault}") from None
    try:
        write_json(folder / CLAIM, {"host": platform.node(), "pid": os.getpid(), "since": time.time()})
        yield True
    finally:
        with suppress(OSError):
            (folder / CLAIM).unlink(missing_ok=True)
        lock.release()


def read_claim(folder: Path) -> dict[str, Any] | None:
    """Who says to do the run in this folder: `host`, `pid` and `since` (seconds since 1970); None if nobody does.

    What the file does not tell soundly is left out. OSError where it may not be read.
    """
    try:
        claim = read_json(folder / CLAIM)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    claim = claim if isinstance(claim, dict) else {}
    sound = {
        "host": lambda host: isinstance(host, str),
        "pid": lambda pid: type(pid) is int and 0 < pid < 2**32,
        "since": lambda since: type(since) in (int, float) and 0 < since < 2**40,
    }
    return {name: claim[name] for name, check in sound.items() if check(claim.get(name))}


def held(folder: Path) -> bool:
    """Whether somebody holds the lock of this folder; asks for no right to write, and leaves no file.

    Where the file system cannot tell, it is taken as held. OSError where the lock may not be looked at.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (OSError, NameError):
        return True
    finally:
        os.close(lock)
    return False

"""Who does a run."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import read_json

with suppress(ImportError):  # Windows
    import fcntl

LOCK, CLAIM = "claim.lock", "claim.json"


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


def holder(folder: Path) -> dict[str, Any] | None:
    """Who does the run in this folder, as `read_claim` has it; None if nobody does it now."""
    claim = read_claim(folder)
    return claim if claim is not None and held(folder) else None

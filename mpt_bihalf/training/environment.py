"""Where a run was made: what may matter to whoever repeats it."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..devices import device_name


@cache
def environment(device: torch.device, threads: int) -> dict[str, str | int]:
    """Versions, processor and device; `commit` too where the package lies in a checkout of its own."""
    facts: dict[str, str | int] = {
        "mpt_bihalf": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": device_name(device),
        "threads": threads,
    }
    commit = commit_of(Path(__file__).parents[2])
    return facts | ({"commit": commit} if commit else {})


@cache
def commit_of(root: Path) -> str | None:
    """The commit checked out in `root`, with `-dirty` after it where tracked files differ; None where there is none.

    Asked once a process, as the code that runs is that of its start. A checkout further up is somebody else's.
    """
    if not (root / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        told = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError, ValueError):  # no git, no commit, another's folder
        return None
    return told.stdout.strip() or None

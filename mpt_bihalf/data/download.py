"""Downloads that arrive whole or not at all and never touch what is already there."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from .dataset import DataError

NEED_NO_DOWNLOAD = "digits and folder:PATH need no download"


def fetch(title: str, root: Path, folder: str, download: Callable[[str], object], remedy: str) -> None:
    """Call `download` on an empty folder inside `root` and, once it has returned, move its `folder` to root/folder.

    `download` is to check what it gets and to raise where that is wrong. `remedy` tells how else to come by the data.
    Raises DataError where root/folder exists already, being not what its reader wanted, and where the download fails.
    """
    target = root / folder
    if os.path.exists(target):
        raise DataError(f"{target} does not hold the whole of {title}: complete it, or move it away to download afresh")
    created = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as staging:
            # Older versions of torchvision announce each file; the progress bar, on stderr, says enough.
            with contextlib.redirect_stdout(io.StringIO()):
                download(staging)
            try:
                os.replace(Path(staging) / folder, target)
            except OSError:
                # Another process may have finished the same download meanwhile; its copy is as good.
                if not target.exists():
                    raise
    except (OSError, RuntimeError, EOFError, tarfile.TarError, zlib.error) as error:
        with contextlib.suppress(OSError):
            for made in created:  # innermost first, and only what is empty
                made.rmdir()
        raise DataError(f"cannot download {title} to {root} ({error}): {remedy}; {NEED_NO_DOWNLOAD}") from error

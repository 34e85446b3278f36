"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Far above what a run leaves, in bytes.
LARGEST = 4 * 2**20
# Bytes of a file's name in that of the unfinished one, which has 14 more: names have 255 at most, encrypted ones 143.
LONGEST = 128
# How many lists and dictionaries deep a value may be; a run's are five.
DEEPEST = 32


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a new file, then put it at once in the place of `path`; on failure `path` stays as it was.

    A link in its place is replaced, not followed. What killed writers of it have left unfinished is removed first. An
    OSError of the new file, or of none, as that of a full disk, is given the name of `path`.
    """
    remove_leftovers(path)
    written = False
    while not written:
        temporary = path.with_name(_temporary_prefix(path) + secrets.token_hex(6))
        try:
            with open(temporary, "xb") as file:
                if _kept(file):
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                    if fcntl is None:
                        file.close()  # Windows renames no open file
                    os.replace(temporary, path)
                    written = True
        except BaseException as fault:
            with suppress(OSError):
                temporary.unlink()
            if isinstance(fault, OSError) and fault.errno is not None and fault.filename in (None, str(temporary)):
                fault.filename = str(path)
                del fault.filename2
            raise


def remove_leftovers(path: Path) -> None:
    """Remove what writers of this file that were killed have left unfinished beside it.

    A living writer holds a lock on what it writes; where there are no locks, all is left as it is.
    """
    unfinished = re.compile(re.escape(_temporary_prefix(path)) + "[0-9a-f]{12}")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if unfinished.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError), open(entry.path, "r+b") as file:
                    _lock(file)
                    os.unlink(entry.path)


def _kept(file: BinaryIO) -> bool:
    """Keep others from removing this new file while it is open; False where one has come before."""
    try:
        _lock(file)
    except BlockingIOError:
        return False
    except OSError:  # no locks here, so nobody removes anything
        pass
    return os.path.lexists(file.name)


def _lock(file: BinaryIO) -> None:
    """Lock an open file. BlockingIOError where somebody else has its lock, another OSError where there are no locks."""
    if fcntl is None:
        raise OSError("no locks on this system")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json_text(content))


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows as `csv_text` has them."""
    write_text(path, csv_text(rows))


def json_text(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """A header from the keys of all rows, in order of appearance, and a line a row; a missing value stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def open_file(path: Path) -> BinaryIO:
    """A file that nobody vouches for, open to read.

    Raises ValueError for what is no file (a pipe would never end), OSError where it is not there or may not be read.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(file).st_mode):
        return os.fdopen(file, "rb")
    os.close(file)
    raise ValueError(f"{path} is no file")


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """The content of such a file, of at most `largest` bytes. Raises as `open_file`, ValueError for what is larger."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise ValueError(f"{path} is larger than {largest:,} bytes")
        return file.read(size)


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """The content of a JSON file that nobody vouches for. Raises as `read_bytes`, ValueError for what is no JSON."""
    return parse_json(read_bytes(path, largest), path)


def parse_json(content: bytes, path: Path) -> Any:
    """The content of a JSON file. path: what messages call it.

    Raises ValueError for what is none, is nested deeper than `DEEPEST` or has a whole number beyond 64 bits.
    """
    try:
        value = json.loads(content.decode(), parse_int=_int64)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    refuse_deep(value, f"{path}")
    return value


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"a whole number begins with {digits[:20]}, which is beyond 64 bits")
    return int(digits)


def refuse_deep(value: Any, name: str = "it") -> None:
    """ValueError for a value of lists, tuples and dictionaries that is nested deeper than `DEEPEST`.

    Nothing in it may stand in several places.
    """
    level: list[Any] = [[value]]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | tuple | dict)
        ]
        if not level:
            return
    raise ValueError(f"{name} is nested too deeply")


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with its `~` or `~USER` looked up. ValueError where no such home folder is known."""
    found = Path(os.path.expanduser(path))
    if found.parts[:1] and found.parts[0].startswith("~"):
        raise ValueError(f"no home folder is known for {found.parts[0]!r}: give the path in full, or as './{found}'")
    return found


def output_folder(name: str) -> Path:
    """The folder that output goes to, which need not exist. ValueError where it cannot become a folder."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the output folder {name!r} must have a name in UTF-8") from None
    if not name.strip() or "\0" in name:
        raise ValueError(f"the output folder needs a name, not {name!r}")
    folder = expanded(name)
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            if not place.is_dir():
                raise ValueError(f"the output folder {name!r} cannot be: {str(place)!r} is a file")
            break
    return folder


def refuse_links(folder: Path, within: Path) -> None:
    """ValueError where a part of the way from `within` to `folder`, below it, is a link: that may lead anywhere."""
    for place in (folder, *folder.parents):
        if place == within:
            break
        if place.is_symlink():
            raise ValueError(f"{place} is a link, and nothing is written to where it leads")


def _temporary_prefix(path: Path) -> str:
    name = os.fsencode(path.name)[:LONGEST]
    return f".{name.decode(sys.getfilesystemencoding(), errors='ignore')}."

"""SHA256SUMS: what the files of a folder are, to the last byte, in the format of `sha256sum`.

A sum is on the disk before its file is, so a file that was being replaced by a killed process is noticed too. A folder
without the list is of a time before it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .files import read_bytes, write_text, write_whole

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  ([\w.-]+)", re.ASCII)
# In bytes: far above any table of a run.
LARGEST_FILE = 2**32


class Damaged(ValueError):
    """A file is not what was written; the message names it."""


def read_sums(folder: Path) -> dict[str, str] | None:
    """The sum of each file by its name; None where there is no list. Damaged for a list that is none."""
    try:
        lines = read_bytes(folder / SUMS).decode("ascii").split("\n")
    except FileNotFoundError:
        return None
    except ValueError:
        lines = []
    found = [LINE.fullmatch(line) for line in lines[:-1]]
    if lines[-1:] != [""] or not found or not all(found):
        raise Damaged(f"{folder / SUMS} is damaged")
    return {line[2]: line[1] for line in found if line}


def read_whole(folder: Path, name: str) -> bytes:
    """The content of a file; in a folder without the list nothing vouches for it.

    Raises Damaged where it is not what the list says, FileNotFoundError where there is none.
    """
    try:
        content = read_bytes(folder / name, LARGEST_FILE)
    except ValueError as fault:
        raise Damaged(str(fault)) from None
    sums = read_sums(folder)
    if sums is not None and sums.get(name) != sum_of(content):
        raise Damaged(f"{folder / name} is damaged: its bytes are not those that {SUMS} tells")
    return content


def write_summed(folder: Path, texts: Mapping[str, str], others: Iterable[str] | None = None) -> None:
    """Write texts as files, by name and in their order, each whole or not at all, with their sums in the list.

    others: files of which the list tells too: what it told, or where there is none yet, what they are now. Without them
    the list begins anew. Damaged where the list is no list and they are wanted.
    """
    contents = {name: text.encode() for name, text in texts.items()}
    sums = {} if others is None else read_sums(folder)
    if sums is None:
        sums = {name: sum_of((folder / name).read_bytes()) for name in others or () if (folder / name).is_file()}
    sums |= {name: sum_of(content) for name, content in contents.items()}
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    for name, content in contents.items():
        write_whole(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]


def sum_of(content: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()

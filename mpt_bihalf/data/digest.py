"""What data a run has seen: a digest of the classes, of the files or labels, and of the contents."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..files import read_bytes
from . import cache
from .locations import cache_root

# To be raised whenever the same files are decoded to other pixels than before. 1: 16 bits were cut off at 255,
# transparency and orientation not looked at.
FORMAT = 2
# Files whose digests are kept at a time, so that a first pass over many of them goes on where it was stopped.
KEPT_AT_A_TIME = 2**16
# Files that a thread reads at a time.
READ_AT_A_TIME = 64
MAX_THREADS = 16
# In bytes, far above any image.
LARGEST_IMAGE = 2**31
# How many class names a message has at most.
MOST_NAMES = 5


@dataclass(frozen=True)
class Part:
    """The digest of a training or of a test set.

    images: how many. labels: SHA-256 of the class of each; of files, of their names below the folder of all classes and
    of their sizes. contents: SHA-256 of the pixels; of files, of the bytes in them.
    """

    images: int
    labels: str
    contents: str

    @classmethod
    def of_tensors(cls, images: Tensor, labels: Tensor) -> Part:
        """images: uint8 [N, C, H, W]; labels: int64 [N]."""
        pixels = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        contents = hashlib.sha256(repr(images.shape).encode())
        contents.update(pixels.data)
        return cls(
            len(images), hashlib.sha256(labels.cpu().contiguous().numpy().data).hexdigest(), contents.hexdigest()
        )

    @classmethod
    def of_files(cls, names: Sequence[str], sizes: np.ndarray, digests: np.ndarray) -> Part:
        """names: `part/class/...` each; sizes: int64 [N] in bytes; digests: uint8 [N, 32]."""
        labels = hashlib.sha256()
        for name, size in zip(names, sizes.tolist(), strict=True):
            below = name.replace(os.sep, "/").partition("/")[2]
            labels.update(os.fsencode(below) + b"\0%d\0" % size)
        return cls(len(names), labels.hexdigest(), hashlib.sha256(np.ascontiguousarray(digests).data).hexdigest())


@dataclass(frozen=True)
class DataDigest:
    """The digest of a data set, whatever the path it lies under."""

    format: int
    classes: tuple[str, ...]
    train: Part
    test: Part

    @cached_property
    def sha256(self) -> str:
        """Of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "classes": list(self.classes), "sha256": self.sha256}

    @classmethod
    def from_json(cls, content: Any) -> DataDigest:
        """What `to_json` gave. ValueError for anything else."""
        try:
            parts = {name: Part(**content[name]) for name in ("train", "test")}
            digest = cls(content["format"], tuple(content["classes"]), **parts)
            whole = content == digest.to_json()
            words = (*digest.classes, *(word for part in parts.values() for word in (part.labels, part.contents)))
            counts = (digest.format, digest.train.images, digest.test.images)
            whole &= all(isinstance(word, str) for word in words) and all(type(count) is int for count in counts)
        except (TypeError, KeyError, AttributeError, ValueError):
            whole = False
        if not whole:
            raise ValueError("the digest of the data is damaged")
        return digest

    def difference(self, recorded: DataDigest) -> str:
        """In what these data differ from those recorded, in a few words; empty where they do not."""
        told = []
        if self.format != recorded.format:
            told.append(f"files are decoded otherwise now (format {self.format}, not {recorded.format})")
        if self.classes != recorded.classes:
            told.append(_classes_differ(self.classes, recorded.classes))
        for name, here, there in (("training", self.train, recorded.train), ("test", self.test, recorded.test)):
            if here.images != there.images:
                told.append(f"there are {here.images:,} {name} images, not {there.images:,}")
            elif here.labels != there.labels:
                told.append(f"{name} images have other names, sizes or classes")
            elif here.contents != there.contents:
                told.append(f"{name} images have other contents")
        return "; ".join(told)


def _classes_differ(here: tuple[str, ...], there: tuple[str, ...]) -> str:
    new, gone = ([name for name in some if name not in others] for some, others in ((here, there), (there, here)))
    parts = []
    for names, what in ((new, "new"), (gone, "gone")):
        if names:
            shown = ", ".join(map(repr, names[:MOST_NAMES])) + ", ..." * (len(names) > MOST_NAMES)
            parts.append(f"class{'es' * (len(names) > 1)} {shown} {'are' if len(names) > 1 else 'is'} {what}")
    return " and ".join(parts) or "the classes stand in another order"


def file_status(file: str) -> tuple[int, int, int, int]:
    """Size in bytes, times of change of the contents and of the entry in ns, and inode: what tells a changed file.

    Raises OSError, for what is no file too, as a pipe or a device may never end, and for more than LARGEST_IMAGE bytes.
    """
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no file", file)
    if status.st_size > LARGEST_IMAGE:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST_IMAGE:,} bytes", file)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)


def digest_files(root: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sizes in bytes, int64 [N], and SHA-256, uint8 [N, 32], of the files of a part, `part/class/...` below root.

    A file whose name and `file_status` are those of an earlier pass is not read again: digests are kept in the cache
    folder, some every so often, so that an interrupted pass goes on. Raises OSError for a file that cannot be read.
    """
    paths = [os.path.join(root, name) for name in names]
    status = np.array([file_status(path) for path in paths], dtype=np.int64).reshape(-1, 4)
    kept = _Kept(root, names)
    digests, known = kept.look_up(status)
    missing = np.flatnonzero(~known)
    with (
        ThreadPoolExecutor(min(4 * (os.cpu_count() or 1), MAX_THREADS)) as threads,
        tqdm(total=len(missing), desc="reading images", unit="image", disable=None) as progress,
    ):
        for some in _pieces(missing, KEPT_AT_A_TIME):
            pieces = [[paths[place] for place in piece] for piece in _pieces(some, READ_AT_A_TIME)]
            done = []
            for read in threads.map(_digests, pieces):
                done += read
                progress.update(len(read))
            digests[some], known[some] = np.frombuffer(b"".join(done), dtype=np.uint8).reshape(-1, 32), True
            kept.write(status, digests, known)
    return status[:, 0], digests


def _pieces(places: np.ndarray, size: int) -> list[np.ndarray]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _digests(paths: list[str]) -> list[bytes]:
    return [hashlib.sha256(read_bytes(Path(path), LARGEST_IMAGE)).digest() for path in paths]


class _Kept:
    """The digests of the files of one part, in a file of the cache: in one for both, each would replace the other's."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        part = os.path.join(root, names[0].partition(os.sep)[0])
        mark = hashlib.sha256(os.fsencode(part)).hexdigest()[:32]
        self._file, self._names = cache_root() / f"digests-{mark}.pt", [os.fsencode(name) for name in names]

    def look_up(self, status: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Digests, uint8 [N, 32], and for which files of this status they are known, bool [N]."""
        digests, known = np.zeros((len(self._names), 32), dtype=np.uint8), np.zeros(len(self._names), dtype=bool)
        kept = cache.read(self._file, "digests")
        if kept is None or kept.keys() != {"names", "status", "digests"}:
            return digests, known
        names = kept["names"].numpy().tobytes()
        if names == b"\0".join(self._names):
            places = np.arange(len(self._names))
        else:
            place_of = {name: place for place, name in enumerate(names.split(b"\0"))}
            places = np.array([place_of.get(name, -1) for name in self._names], dtype=np.int64)
        known = (places >= 0) & (kept["status"].numpy()[places] == status).all(axis=1)
        digests[known] = kept["digests"].numpy()[places[known]]
        return digests, known

    def write(self, status: np.ndarray, digests: np.ndarray, known: np.ndarray) -> None:
        names = b"\0".join(name for name, kept in zip(self._names, known, strict=True) if kept)
        tensors = {
            "names": torch.from_numpy(np.frombuffer(names, dtype=np.uint8).copy()),
            "status": torch.from_numpy(status[known]),
            "digests": torch.from_numpy(digests[known]),
        }
        cache.write(self._file, "digests", tensors)

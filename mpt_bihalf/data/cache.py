"""Tensors kept in a file between runs: written whole or not at all, and believed only when proven whole."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ..archive import read_archive
from ..files import open_file, remove_leftovers, write_whole


def read(file: Path, fingerprint: str) -> dict[str, Tensor] | None:
    """The tensors that `write` put into `file` under the same fingerprint; None where that is not what it holds."""
    remove_leftovers(file)
    try:
        with open_file(file) as content:
            stored = read_archive(content)
        tensors = stored["tensors"]
        whole = stored["fingerprint"] == fingerprint and stored["digest"] == _digest(tensors)
    except Exception:  # a truncated, damaged or foreign file may fail in any way, and each of them means the same
        return None
    return tensors if whole else None


def write(file: Path, fingerprint: str, tensors: dict[str, Tensor]) -> None:
    """Replace `file` by the tensors; where the folder cannot be written to, leave things as they are, silently.

    Two processes may do so at once: whichever is later wins, and a reader sees one or the other, never a mixture.
    """
    state = {"fingerprint": fingerprint, "digest": _digest(tensors), "tensors": tensors}
    with contextlib.suppress(OSError, RuntimeError):  # torch turns a full disk into a RuntimeError
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda stream: torch.save(state, stream))


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()

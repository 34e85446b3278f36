"""The same values whatever torch's default dtype is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Within, torch's default dtype is float32, in the whole process.

    For draws that are not ours, which cannot be given a dtype: in another one torch draws other values from a seed.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

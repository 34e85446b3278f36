"""The data of a run: loaded, kept for the next run, alike in all processes, and who decodes them."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..data import DataError, Dataset, load_dataset
from ..distributed import Team
from .config import Run

# Processes that decode images by default, at most: each has batches ready.
MOST_WORKERS = 16


def load_run_data(run: Run) -> Dataset:
    """The run's data set, with nothing held out yet."""
    return load_dataset(run.data, run.data_root or None, run.image_size or None)


def kept_data(run: Run) -> Dataset:
    """The run's data set, kept in memory for the next run, which mostly has the same; read anew if it wants others."""
    place = run.data, run.data_root, run.image_size
    if run.data_digest not in ("", _kept_data(*place).digest.sha256):
        _kept_data.cache_clear()
    return _kept_data(*place)


@lru_cache(maxsize=1)
def _kept_data(name: str, root: str, image_size: int) -> Dataset:
    return load_dataset(name, root or None, image_size or None)


def check_alike(team: Team, run: Run, dataset: Dataset) -> None:
    """DataError, in all processes of the team, where one of them has other data than the first."""
    digest = torch.tensor([*bytes.fromhex(dataset.digest.sha256)], dtype=torch.uint8)
    everyones = team.gather(digest).view(-1, len(digest))
    for rank, theirs in enumerate(everyones):
        if not torch.equal(theirs, everyones[0]):
            raise DataError(f"{run.data} holds other data for process {rank} than for the first")


def decoders(run: Run) -> int:
    """How many processes decode the images of this run, where those do not fit into memory."""
    return run.workers or min(run.threads, MOST_WORKERS)

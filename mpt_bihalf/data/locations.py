"""Where downloaded and decoded data are kept."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir

from ..files import expanded

CACHE_VARIABLE = "MPT_BIHALF_CACHE"


def cache_root() -> Path:
    """The folder named by the environment variable MPT_BIHALF_CACHE, or else the user's cache folder.

    ValueError for a user without one, as some in containers are.
    """
    try:
        return expanded(os.environ.get(CACHE_VARIABLE) or user_cache_dir("mpt_bihalf"))
    except (ValueError, RuntimeError) as fault:  # the latter is platformdirs'
        raise ValueError(f"there is no folder for data sets and caches: set {CACHE_VARIABLE} ({fault})") from None


def data_folder(data_root: str | os.PathLike[str] | None) -> Path:
    """The folder that data sets are looked for in and downloaded to: `data_root`, or "data" in the cache folder."""
    return cache_root() / "data" if data_root is None else expanded(data_root)

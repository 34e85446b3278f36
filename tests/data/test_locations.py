from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from mpt_bihalf.data.locations import cache_root, data_folder


def test_the_variable_names_the_cache_folder(cache_folder: Path) -> None:
    assert cache_root() == cache_folder
    assert data_folder(None) == cache_folder / "data"


@pytest.mark.parametrize("empty", [True, False])
def test_without_it_the_users_own_is_taken(monkeypatch: pytest.MonkeyPatch, empty: bool) -> None:
    if empty:
        monkeypatch.setenv("MPT_BIHALF_CACHE", "")
    else:
        monkeypatch.delenv("MPT_BIHALF_CACHE")
    assert cache_root() == Path(platformdirs.user_cache_dir("mpt_bihalf"))


def test_a_data_root_is_taken_as_given() -> None:
    assert data_folder("~/images") == Path.home() / "images"
    assert data_folder("images") == Path("images")
    assert data_folder("~nobody-of-this-name/images") == Path("~nobody-of-this-name/images")

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from mpt_bihalf.data import load_dataset
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
    with pytest.raises(ValueError, match="no home folder is known for '~nobody-of-this-name'"):
        data_folder("~nobody-of-this-name/images")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "MPT_BIHALF_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as of a user without an entry
    with pytest.raises(ValueError, match="set MPT_BIHALF_CACHE"):
        load_dataset("cifar10")
    assert len(load_dataset("digits").test) == 360
    monkeypatch.setenv("MPT_BIHALF_CACHE", "~/caches")
    with pytest.raises(ValueError, match="no home folder is known for '~'"):
        cache_root()

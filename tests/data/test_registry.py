from __future__ import annotations

from pathlib import Path

import pytest

from mpt_bihalf.data import DATASETS, DataError, check_name, load_dataset, registry


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10", "cifar100", "folder:/no/such/place"])
def test_known_names_pass_without_loading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load_folder", pytest.fail)
    for known in DATASETS:
        monkeypatch.setitem(DATASETS, known, pytest.fail)
    check_name(name)


@pytest.mark.parametrize("name", ["cifar", "", "Digits", "folder:", "folder"])
def test_unknown_names_are_told_the_known_ones(name: str) -> None:
    for ask in (check_name, load_dataset):
        with pytest.raises(DataError) as error:
            ask(name)
        assert repr(name) in str(error.value)
        assert all(known in str(error.value) for known in [*DATASETS, "folder:PATH"])


@pytest.mark.parametrize("size", [0, -3])
def test_impossible_image_sizes_are_refused(size: int) -> None:
    with pytest.raises(DataError, match=f"image_size {size} must"):
        load_dataset("digits", image_size=size)


def test_a_new_data_set_is_one_registration(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    calls: list[object] = []
    monkeypatch.setitem(DATASETS, "mine", lambda root, size: calls.append((root, size)))
    load_dataset("mine")
    load_dataset("mine", "/somewhere", 16)
    assert calls == [(cache_folder / "data", None), (Path("/somewhere"), 16)]


def test_a_folder_is_found_by_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setitem(registry.FOLDERS, "folder", lambda path, size: calls.append((path, size)))  # type: ignore
    load_dataset("folder:a:b/c", image_size=5)
    assert calls == [(Path("a:b/c"), 5)]

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mpt_bihalf.data import (
    DATASETS,
    FOLDERS,
    DataError,
    check_name,
    fashion_mnist,
    is_here,
    load_dataset,
    own_augmentation,
    short_data,
)
from mpt_bihalf.data.registry import AUGMENTED


@pytest.mark.parametrize(
    "name", ["digits", "fashion-mnist", "cifar10", "cifar100", "imagenet", "folder:/no/such", "imagenet:/no/such"]
)
def test_known_names_pass_without_loading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaders in (DATASETS, FOLDERS):
        for known in loaders:
            monkeypatch.setitem(loaders, known, pytest.fail)
    check_name(name)


@pytest.mark.parametrize("name", ["cifar", "", "Digits", "folder:", "folder", "imagenet:", "digits:a"])
def test_unknown_names_are_told_the_known_ones(name: str) -> None:
    for ask in (check_name, load_dataset):
        with pytest.raises(DataError) as error:
            ask(name)
        assert repr(name) in str(error.value)
        assert all(known in str(error.value) for known in [*DATASETS, "folder:PATH", "imagenet:PATH"])


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


def test_what_is_done_to_training_images_is_known_of_every_data_set_of_the_package() -> None:
    assert {*AUGMENTED} == {*DATASETS, *FOLDERS}
    assert own_augmentation("folder:/a:b") == AUGMENTED["folder"]
    assert own_augmentation("mine") == (None, None)


def test_a_folder_is_found_by_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    for prefix in FOLDERS:
        monkeypatch.setitem(FOLDERS, prefix, lambda path, size, prefix=prefix: calls.append((prefix, path, size)))
    load_dataset("folder:a:b/c", image_size=5)
    load_dataset("imagenet:a:b/c")
    assert calls == [("folder", Path("a:b/c"), 5), ("imagenet", Path("a:b/c"), None)]


def test_a_data_set_is_here_where_its_folder_is_and_nothing_is_downloaded(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", pytest.fail)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    missing = {"fashion-mnist", "cifar10", "cifar100", "imagenet"}
    for root in (None, str(tmp_path / "root")):
        assert {name for name in DATASETS if not is_here(name, root)} == missing
    assert list(cache_folder.iterdir()) == []
    root = tmp_path / "root"
    for folder in ("imagenet", "cifar-10-batches-py", "cifar-100-python"):
        (root / folder).mkdir(parents=True)
    for file in fashion_mnist.FILES:
        (root / file).write_text("")
    assert all(is_here(name, str(root)) for name in DATASETS)
    monkeypatch.setitem(DATASETS, "mine", pytest.fail)
    assert is_here("mine")


def test_a_folder_is_here_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").mkdir()
    for prefix in FOLDERS:
        assert is_here(f"{prefix}:{tmp_path / 'there'}") and is_here(f"{prefix}:~/there")
        assert not is_here(f"{prefix}:{tmp_path / 'nowhere'}")
        with pytest.raises(DataError, match="no home folder is known for '~nobody-of-this-name'"):
            load_dataset(f"{prefix}:~nobody-of-this-name/there")
        assert not is_here(f"{prefix}:~nobody-of-this-name/there")


@pytest.mark.parametrize(
    ("name", "short"),
    [("digits", "digits"), ("folder:/a/b c", "b c"), ("imagenet", "imagenet"), ("imagenet:/a/b", "imagenet")],
)
def test_a_short_name_has_no_path(name: str, short: str) -> None:
    assert short_data(name) == short

"""Corrupted test images in the files of CIFAR-10-C."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mpt_bihalf.data import DataError, Dataset, ImageSet, load_dataset
from mpt_bihalf.data.corrupted import Corrupted, is_to_make, make_corrupted


@pytest.fixture(scope="module")
def few() -> Dataset:
    """Digits of 32 pixels a side with eight test images."""
    digits = load_dataset("digits", image_size=32)
    assert isinstance(digits.test, ImageSet)
    return replace(digits, test=ImageSet(digits.test.images[:8], digits.test.labels[:8]))


def lay_down(folder: Path, count: int = 8, size: int = 32) -> np.ndarray:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5 * count, size, size, 1), dtype=np.uint8)
    np.save(folder / "fog.npy", pixels)
    np.save(folder / "labels.npy", np.tile(np.arange(count) % 10, 5).astype(np.uint8))
    return pixels


def test_files_are_read_by_severity(few: Dataset, tmp_path: Path) -> None:
    pixels = lay_down(tmp_path / "CIFAR-10-C")
    found = Corrupted(tmp_path / "CIFAR-10-C", few)
    assert (found.names, found.count, found.called) == (["fog"], 8, "CIFAR-10-C")
    images = found.images("fog", 3)
    assert torch.equal(images.images.permute(0, 2, 3, 1), torch.from_numpy(pixels[16:24]))
    assert images.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert len(found.images("fog", 5, first=3)) == 3
    before = found.digest()
    np.save(tmp_path / "CIFAR-10-C" / "fog.npy", 255 - pixels)
    assert found.digest() != before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("fog.npy", np.zeros((40, 32, 32, 3), np.uint8), r"fog.npy must be uint8 \[40, 32, 32, 1\], not uint8"),
        ("fog.npy", np.zeros((39, 32, 32, 1), np.uint8), "as many as there are labels"),
        ("fog.npy", np.zeros((40, 32, 32, 1), np.float32), "must be uint8"),
        ("fog.npy", b"no array", "fog.npy is no array of numbers in a file of NumPy's"),
        ("fog.npy", b"", "fog.npy is no array of numbers in a file of NumPy's"),
        ("labels.npy", np.arange(39), "whole numbers, as many for each of 5 severities"),
        ("labels.npy", np.full(40, 10), "has classes beyond the 10"),
        ("labels.npy", np.full(40, -1), "has classes beyond the 10"),
        ("labels.npy", np.zeros(40), "must hold whole numbers"),
        ("labels.npy", np.array([{}] * 40, dtype=object), "labels.npy is no array of numbers in a file of NumPy's"),
    ],
)
def test_files_that_are_none_are_refused_in_one_line(
    name: str, content: np.ndarray | bytes, told: str, few: Dataset, tmp_path: Path
) -> None:
    lay_down(tmp_path / "c")
    if isinstance(content, bytes):
        (tmp_path / "c" / name).write_bytes(content)
    else:
        np.save(tmp_path / "c" / name, content)
    with pytest.raises(DataError, match=told) as fault:
        Corrupted(tmp_path / "c", few).images("fog", 1)
    assert "\n" not in str(fault.value)


def test_an_archive_and_a_folder_in_the_place_of_a_file_are_refused(few: Dataset, tmp_path: Path) -> None:
    lay_down(tmp_path / "c")
    np.savez(tmp_path / "labels.npz", np.zeros(40, np.int64))
    (tmp_path / "labels.npz").rename(tmp_path / "c" / "labels.npy")
    with pytest.raises(DataError, match=r"labels\.npy is no array of numbers"):
        Corrupted(tmp_path / "c", few)
    lay_down(tmp_path / "d")
    (tmp_path / "d" / "snow.npy").mkdir()
    with pytest.raises(DataError, match=r"snow\.npy is no array of numbers"):  # before anything is looked at
        Corrupted(tmp_path / "d", few)


def test_images_that_were_made_of_others_are_refused(few: Dataset, tmp_path: Path) -> None:
    lay_down(tmp_path / "c")
    (tmp_path / "c" / "made.json").write_text(json.dumps({"made_by": "x 1", "of": "0000", "whole": True}))
    for do in (Corrupted, make_corrupted):
        with pytest.raises(DataError, match="was made of other images than digits has: remove it"):
            do(tmp_path / "c", few)


def test_a_folder_that_is_none_says_so(few: Dataset, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match=r"holds no corrupted images: files like brightness\.npy"):
            Corrupted(folder, few)
    lay_down(tmp_path / "c")
    (tmp_path / "c" / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"c has no labels.npy"):
        Corrupted(tmp_path / "c", few)


def test_a_library_makes_them_and_they_go_by_its_name(few: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    make_corrupted(tmp_path / "made", few)
    found = Corrupted(tmp_path / "made", few)
    assert len(found.names) == 15
    assert found.called.startswith("imagecorruptions-imaug ")
    assert json.loads((tmp_path / "made" / "made.json").read_text())["of"] == few.digest.sha256
    assert isinstance(few.test, ImageSet)
    apart = []
    for severity in (1, 5):
        images = found.images("gaussian_noise", severity)
        assert images.labels.tolist() == few.test.labels.tolist()
        apart.append((images.images.float() - few.test.images.float()).abs().mean().item())
    assert 0 < apart[0] < apart[1]
    # What is there stays.
    (tmp_path / "made" / "fog.npy").unlink()
    kept = (tmp_path / "made" / "snow.npy").stat().st_mtime_ns
    make_corrupted(tmp_path / "made", few)
    assert (tmp_path / "made" / "fog.npy").exists()
    assert (tmp_path / "made" / "snow.npy").stat().st_mtime_ns == kept


def test_files_from_elsewhere_are_never_taken_for_made_ones(few: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    folder = tmp_path / "corrupted"
    assert is_to_make(folder)
    lay_down(folder)
    assert not is_to_make(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(DataError, match="holds images that were not made here: they stay as they are"):
        make_corrupted(folder, few)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert Corrupted(folder, few).called == "corrupted"
    (folder / "made.json").write_text(json.dumps({"made_by": "x 1", "of": few.digest.sha256, "whole": False}))
    assert is_to_make(folder)  # cut short


def test_images_that_the_library_does_not_take_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    with pytest.raises(DataError, match=r"32 pixels a side or more.*has 8 pixels: train with --image-size 32"):
        make_corrupted(tmp_path / "made", load_dataset("digits"))
    assert not (tmp_path / "made").exists()

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from torchvision.datasets import utils as torchvision_utils

from mpt_bihalf.data import DataError, fashion_mnist, load_dataset, own_augmentation
from mpt_bihalf.data.fashion_mnist import FILES


@pytest.fixture(autouse=True)
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Neither the network nor Debian's package, whether installed or not: its folder is one of the test's own."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision_utils.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path / "debian"


def put(folder: Path, seed: int = 0, packed: bool = False) -> list[np.ndarray]:
    """Write the four files, 30 training and 10 test images, and return their arrays in the order of FILES."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    arrays = []
    for file in FILES:
        count = 30 if file.startswith("train") else 10
        shape, top = ((count, 28, 28), 256) if "images" in file else ((count,), 10)
        array = rng.integers(0, top, shape, dtype=np.uint8)
        content = struct.pack(">BBBB", 0, 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()
        (folder / (f"{file}.gz" if packed else file)).write_bytes(gzip.compress(content) if packed else content)
        arrays.append(array)
    return arrays


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["root/FashionMNIST/raw", "root", "debian"])
def test_files_are_read_wherever_they_lie(tmp_path: Path, place: str, packed: bool) -> None:
    arrays = put(tmp_path / place, packed=packed)
    before = sorted(tmp_path.rglob("*"))
    dataset = load_dataset("fashion-mnist", str(tmp_path / "root"))
    for part, (images, labels) in ((dataset.train, arrays[:2]), (dataset.test, arrays[2:])):
        assert np.array_equal(part.images[:, 0].numpy(), images)
        assert np.array_equal(part.labels.numpy(), labels)
    assert sorted(tmp_path.rglob("*")) == before


def test_torchvisions_layout_goes_before_loose_files_and_those_before_debians(tmp_path: Path) -> None:
    expected = []
    for seed, place in enumerate(("debian", "root", "root/FashionMNIST/raw")):
        expected = put(tmp_path / place, seed)
        dataset = load_dataset("fashion-mnist", str(tmp_path / "root"))
        assert np.array_equal(dataset.train.images[:, 0].numpy(), expected[0])


def test_statistics_classes_and_augmentation(tmp_path: Path) -> None:
    pixels = put(tmp_path)[0] / 255
    dataset = load_dataset("fashion-mnist", str(tmp_path))
    assert dataset.mean == pytest.approx((pixels.mean(),)) and dataset.std == pytest.approx((pixels.std(),))
    assert (dataset.classes[0], dataset.classes[9], dataset.num_classes) == ("T-shirt/top", "Ankle boot", 10)
    assert (dataset.crop_padding, dataset.flip) == (2, True)
    assert own_augmentation("fashion-mnist") == (dataset.flip, dataset.random_crop)


def test_resizing_keeps_the_padding_in_proportion_and_the_digest(tmp_path: Path) -> None:
    put(tmp_path)
    dataset = load_dataset("fashion-mnist", str(tmp_path), image_size=56)
    assert (dataset.image_size, dataset.in_channels, dataset.crop_padding) == (56, 1, 4)
    whole = load_dataset("fashion-mnist", str(tmp_path)).digest
    assert dataset.digest == whole
    put(tmp_path, seed=1)
    assert load_dataset("fashion-mnist", str(tmp_path)).digest.difference(whole) == (
        "training images have other names, sizes or classes; test images have other names, sizes or classes"
    )


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("left", [0, 3, -5])
def test_a_truncated_file_is_told_and_left_alone(tmp_path: Path, file: str, packed: bool, left: int) -> None:
    put(tmp_path, packed=packed)
    path = tmp_path / (f"{file}.gz" if packed else file)
    path.write_bytes(path.read_bytes()[:left])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError) as error:
        load_dataset("fashion-mnist", str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_labels_beyond_the_classes_are_told(tmp_path: Path) -> None:
    put(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([10]))
    with pytest.raises(DataError, match="labels beyond the classes"):
        load_dataset("fashion-mnist", str(tmp_path))


def test_without_network_or_files_the_way_to_get_them_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_dataset("fashion-mnist", str(tmp_path / "root"))
    message = str(error.value)
    assert "\n" not in message
    for part in (*FILES, str(tmp_path / "root"), "--data-root", "dataset-fashion-mnist", "digits and folder:PATH"):
        assert part in message
    assert not (tmp_path / "root").exists()


def test_part_of_the_files_is_not_taken_for_all_nor_replaced(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    put(raw)
    (raw / FILES[3]).unlink()
    before = {path: path.read_bytes() for path in raw.iterdir()}
    with pytest.raises(DataError, match="does not hold the whole"):
        load_dataset("fashion-mnist", str(tmp_path))
    assert {path: path.read_bytes() for path in raw.iterdir()} == before


def test_a_packed_file_that_grows_beyond_the_data_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, packed=True)
    monkeypatch.setattr(fashion_mnist, "LARGEST", 20_000)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz has more than 20,000 bytes in it"):
        load_dataset("fashion-mnist", str(tmp_path))

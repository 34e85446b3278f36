from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.datasets import utils as torchvision_utils

from mpt_bihalf.data import DataError, load_dataset, own_augmentation

NAMES = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


class Cifar:
    """Files of CIFAR's format with ten images each, and what is in them."""

    def __init__(self, name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.root, self.source = name, root, NAMES[name]
        self.folder = root / self.source.base_folder
        self.archive = root / self.source.filename
        self.folder.mkdir(parents=True)
        self.pixels: list[np.ndarray] = []
        self.labels: list[int] = []
        rng = np.random.default_rng(0)
        self.classes = [f"class {i}" for i in range(10 if name == "cifar10" else 100)]

        def put(filename: str, content: dict[str, object]) -> list[str]:
            packed = pickle.dumps(content, protocol=2)
            (self.folder / filename).write_bytes(packed)
            return [filename, hashlib.md5(packed).hexdigest()]

        def part(filename: str) -> list[str]:
            pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
            labels = rng.integers(0, len(self.classes), 10).tolist()
            self.pixels.append(pixels.reshape(10, 3, 32, 32))
            self.labels += labels
            return put(filename, {"data": pixels, "labels" if name == "cifar10" else "fine_labels": labels})

        # torchvision believes only files with the true data's MD5 sums; the check itself stays, with these files' sums.
        for kind in ("train_list", "test_list"):
            monkeypatch.setattr(self.source, kind, [part(filename) for filename, _ in getattr(self.source, kind)])
        _, md5 = put(self.source.meta["filename"], {self.source.meta["key"]: self.classes})
        monkeypatch.setattr(self.source, "meta", {**self.source.meta, "md5": md5})

    def pack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Leave the archive in the folder's stead."""
        with tarfile.open(self.archive, "w:gz") as tar:
            tar.add(self.folder, self.folder.name)
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()
        monkeypatch.setattr(self.source, "tgz_md5", hashlib.md5(self.archive.read_bytes()).hexdigest())


@pytest.fixture(params=list(NAMES))
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar:
    return Cifar(request.param, tmp_path / "data", monkeypatch)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision_utils.urllib.request, "urlopen", unreachable)


def test_files_are_read_as_they_lie(cifar: Cifar) -> None:
    dataset = load_dataset(cifar.name, str(cifar.root))
    pixels = torch.from_numpy(np.concatenate(cifar.pixels))
    assert torch.equal(torch.cat([dataset.train.images, dataset.test.images]), pixels)
    assert torch.cat([dataset.train.labels, dataset.test.labels]).tolist() == cifar.labels
    assert len(dataset.test) == 10
    assert dataset.classes == tuple(cifar.classes)


def test_augmentation_and_statistics_are_the_fields(cifar: Cifar) -> None:
    dataset = load_dataset(cifar.name, str(cifar.root))
    assert (dataset.crop_padding, dataset.flip) == (4, True)
    assert own_augmentation(cifar.name) == (dataset.flip, dataset.random_crop)
    assert (dataset.mean, dataset.std) == {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    }[cifar.name]


def test_resizing_keeps_the_padding_in_proportion_and_the_digest(cifar: Cifar) -> None:
    dataset = load_dataset(cifar.name, str(cifar.root), image_size=16)
    assert (dataset.image_size, dataset.crop_padding) == (16, 2)
    assert dataset.digest == load_dataset(cifar.name, str(cifar.root)).digest
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:] == (3, 16, 16)


def test_an_archive_in_the_root_is_unpacked_without_a_network(cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar.pack(monkeypatch)
    before = cifar.archive.read_bytes()
    dataset = load_dataset(cifar.name, str(cifar.root))
    assert torch.cat([dataset.train.labels, dataset.test.labels]).tolist() == cifar.labels
    assert cifar.archive.read_bytes() == before
    assert sorted(path.name for path in cifar.root.iterdir()) == sorted([cifar.folder.name, cifar.archive.name])


def test_an_incomplete_archive_is_named_and_left_alone(cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar.pack(monkeypatch)
    half = cifar.archive.read_bytes()[: cifar.archive.stat().st_size // 2]
    cifar.archive.write_bytes(half)
    with pytest.raises(DataError) as error:
        load_dataset(cifar.name, str(cifar.root))
    assert str(cifar.archive) in str(error.value)
    assert cifar.archive.read_bytes() == half
    assert list(cifar.root.iterdir()) == [cifar.archive]


@pytest.mark.parametrize("damage", ["truncated", "missing", "meta"])
def test_a_damaged_file_is_named_and_left_alone(cifar: Cifar, damage: str) -> None:
    file = cifar.folder / (cifar.source.meta["filename"] if damage == "meta" else cifar.source.test_list[0][0])
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in cifar.folder.iterdir()}
    with pytest.raises(DataError) as error:
        load_dataset(cifar.name, str(cifar.root))
    assert f"{file} is {'missing' if damage == 'missing' else 'damaged'}" in str(error.value)
    assert {path: path.read_bytes() for path in cifar.folder.iterdir()} == before


def test_without_network_or_files_the_way_to_get_them_is_told(cifar: Cifar, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_dataset(cifar.name, str(tmp_path / "elsewhere"))
    message = str(error.value)
    assert "\n" not in message
    for part in ("Name or service", str(tmp_path / "elsewhere"), cifar.source.filename, "--data-root", "folder:PATH"):
        assert part in message
    assert not (tmp_path / "elsewhere").exists()

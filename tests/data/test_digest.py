from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpt_bihalf.data import Dataset, digest, load_dataset
from mpt_bihalf.data.digest import FORMAT, DataDigest, Part
from tests.reference import one_line_error

KINDS = ("folder", "imagenet")


def put(path: Path, seed: int) -> None:
    """A bitmap of 8x8 pixels of noise: all of them are of one size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of three training and two test images each, of which those of one number differ in contents alone."""
    for seed, (part, count) in enumerate((("train", 3), ("test", 2))):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                put(tmp_path / "images" / part / name / f"{number}.bmp", 100 * seed + 10 * label + number)
    return tmp_path / "images"


def digest_of(path: Path | str, kind: str = "folder") -> DataDigest:
    return load_dataset(f"{kind}:{path}", image_size=8).digest


def closed_form(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = {"format": FORMAT, "classes": sorted(entry.name for entry in (path / "train").iterdir())}
    for part in ("train", "test"):
        files = sorted((path / part).glob("*/*"))
        labels = b"".join(f"{file.parent.name}/{file.name}\0{len(file.read_bytes())}\0".encode() for file in files)
        contents = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
        told[part] = {
            "images": len(files),
            "labels": hashlib.sha256(labels).hexdigest(),
            "contents": hashlib.sha256(contents).hexdigest(),
        }
    return {**told, "sha256": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_that_of_names_sizes_and_contents(images: Path, kind: str) -> None:
    assert digest_of(images, kind).to_json() == closed_form(images)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_wherever_the_files_lie(images: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digest_of(images, kind)
    copy = images.parent / "copy"
    shutil.copytree(images, copy)
    (copy / "test").rename(copy / "val")
    assert digest_of(copy, kind) == expected
    monkeypatch.chdir(images.parent)
    monkeypatch.setenv("HOME", str(images.parent))
    assert digest_of("copy", kind) == digest_of("~/copy", kind) == expected


def swap(a: Path, b: Path) -> None:
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def change_a_byte(file: Path) -> None:
    """In place, with the size and the times of before."""
    status = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    while file.stat().st_ctime_ns == status.st_ctime_ns:  # until the clock of the file system has moved on
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def rename_class(images: Path) -> None:
    for part in ("train", "test"):
        (images / part / "dog").rename(images / part / "emu")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a label swapped": (
        lambda images: swap(images / "test/cat/0.bmp", images / "test/dog/0.bmp"),
        "test images have other contents",
    ),
    "two classes renamed into each other": (
        lambda images: swap(images / "train/cat", images / "train/dog"),
        "training images have other contents",
    ),
    "a byte": (lambda images: change_a_byte(images / "train/dog/1.bmp"), "training images have other contents"),
    "added": (lambda images: put(images / "train/dog/9.bmp", 9), "there are 7 training images, not 6"),
    "removed": (lambda images: (images / "test/cat/1.bmp").unlink(), "there are 3 test images, not 4"),
    "renamed": (
        lambda images: (images / "test/cat/1.bmp").rename(images / "test/cat/2.bmp"),
        "test images have other names, sizes or classes",
    ),
    "moved to another class": (
        lambda images: (images / "train/cat/2.bmp").rename(images / "train/dog/3.bmp"),
        "training images have other names, sizes or classes",
    ),
    "a class renamed": (
        rename_class,
        "class 'emu' is new and class 'dog' is gone; training images have other names, sizes or classes; "
        "test images have other names, sizes or classes",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_other_data_have_another_which_tells_what_changed(images: Path, kind: str, change: str) -> None:
    before = digest_of(images, kind)
    assert before.difference(before) == ""
    do, told = CHANGES[change]
    do(images)
    after = digest_of(images, kind)
    assert after.sha256 != before.sha256
    assert after.difference(before) == told
    assert after.to_json() == closed_form(images)


def test_other_decoding_and_many_other_classes_are_told(images: Path) -> None:
    whole = digest_of(images)
    older = DataDigest(FORMAT - 1, whole.classes, whole.train, whole.test)
    assert older.sha256 != whole.sha256
    assert f"format {FORMAT}, not {FORMAT - 1}" in whole.difference(older)
    turned = DataDigest(FORMAT, whole.classes[::-1], whole.train, whole.test)
    assert turned.difference(whole) == "the classes stand in another order"
    many = DataDigest(FORMAT, tuple("abcdefgh"), whole.train, whole.test)
    assert many.difference(whole).startswith(
        "classes 'a', 'b', 'c', 'd', 'e', ... are new and classes 'cat', 'dog' are"
    )


def test_it_is_read_back_from_json(images: Path) -> None:
    whole = digest_of(images)
    assert DataDigest.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def each_changed(content: dict[str, Any]) -> list[Any]:
    """The same with one field of it changed, gone or added."""
    changed: list[Any] = [{**content, "more": 1}]
    for name, value in content.items():
        others = [None, [], {}, 1.5, "x", [value]]
        if isinstance(value, dict):
            others += each_changed(value)
        elif isinstance(value, int):
            others += [value + 1, float(value), str(value)]
        elif isinstance(value, list):
            others += [value[::-1], value[:-1], [*value, "z"], "".join(value), [1, 2]]
        else:
            others += [value.upper(), value[:-1]]
        changed += [{**content, name: other} for other in others]
        changed.append({key: kept for key, kept in content.items() if key != name})
    return changed


def test_a_damaged_or_foreign_one_is_refused() -> None:
    whole = DataDigest(FORMAT, ("a", "b"), Part(2, "0a", "0b"), Part(1, "0c", "0d"))
    content = whole.to_json()
    damaged = each_changed(content)
    assert len(damaged) > 60
    foreign = [{"format": 2.0}, {"classes": ("a", 1)}, {"train": Part(True, "0a", "0b")}, {"test": Part(1, "0c", 2)}]
    damaged += [replace(whole, **field).to_json() for field in foreign]
    for other in [*damaged, None, [], {}, 1, "text", [content]]:
        with pytest.raises(ValueError, match="the digest of the data is damaged"):
            DataDigest.from_json(other)


def test_images_in_memory_are_told_by_pixels_and_labels(colour: Dataset) -> None:
    told = colour.digest.to_json()["test"]
    labels = colour.test.labels.numpy().astype("<i8").tobytes()
    pixels = np.stack([image.permute(1, 2, 0).numpy() for image in colour.test.images]).tobytes()
    assert told["labels"] == hashlib.sha256(labels).hexdigest()
    assert told["contents"] == hashlib.sha256(b"torch.Size([20, 3, 12, 12])" + pixels).hexdigest()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read for their digests, in no order."""
    files: list[str] = []
    plain = digest._digests

    def counted(paths: list[str]) -> list[bytes]:
        files.extend(paths)
        return plain(paths)

    monkeypatch.setattr(digest, "_digests", counted)
    return files


def test_a_second_start_reads_only_what_was_touched(images: Path, reads: list[str]) -> None:
    first = digest_of(images, "imagenet")
    assert len(reads) == len(set(reads)) == 10
    reads.clear()
    assert digest_of(images, "imagenet") == first
    assert reads == []
    touched = images / "train" / "cat" / "1.bmp"
    os.utime(touched, (1, 1))
    assert digest_of(images, "imagenet") == first
    assert reads == [str(touched)]
    reads.clear()
    assert digest_of(images, "imagenet") == first
    assert reads == []
    (images / "train" / "cat" / "0.bmp").unlink()
    put(images / "train" / "cat" / "7.bmp", 7)
    assert digest_of(images, "imagenet").to_json() == closed_form(images)
    assert reads == [str(images / "train" / "cat" / "7.bmp")]


def test_images_held_out_are_not_read_again(images: Path, reads: list[str]) -> None:
    dataset = load_dataset(f"imagenet:{images}", image_size=8)
    reads.clear()
    left, taken = dataset.hold_out(0.5)
    assert (left.train.digest.images, taken.digest.images) == (3, 3)
    assert left.train.digest.contents != taken.digest.contents
    digest_of(images, "imagenet")
    assert reads == []


def test_a_first_pass_that_was_stopped_goes_on(images: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "KEPT_AT_A_TIME", 2)
    monkeypatch.setattr(digest, "READ_AT_A_TIME", 1)
    counted = digest._digests

    def stopped(paths: list[str]) -> list[bytes]:
        if paths[0].endswith(os.path.join("train", "dog", "1.bmp")):  # the fifth of six
            raise KeyboardInterrupt
        return counted(paths)

    with monkeypatch.context() as patch:
        patch.setattr(digest, "_digests", stopped)
        with pytest.raises(KeyboardInterrupt):
            digest_of(images, "imagenet")
    first = {str(images / "train" / name) for name in ("cat/0.bmp", "cat/1.bmp", "cat/2.bmp", "dog/0.bmp")}
    assert first <= set(reads)
    reads.clear()
    assert digest_of(images, "imagenet").to_json() == closed_form(images)
    assert first.isdisjoint(reads)


@pytest.mark.parametrize("damage", ["unwritable", "text", "cut", "a byte"])
def test_a_cache_that_does_not_serve_is_only_slower(
    images: Path, reads: list[str], cache_folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    if damage == "unwritable":
        (images.parent / "file").write_text("")
        monkeypatch.setenv("MPT_BIHALF_CACHE", str(images.parent / "file"))
    first = digest_of(images, "imagenet")
    kept = hashlib.sha256((images / "test" / "cat" / "0.bmp").read_bytes()).digest()
    for file in cache_folder.iterdir():
        content = file.read_bytes()
        damaged = {"text": b"text", "cut": content[: len(content) // 2], "a byte": content.replace(kept, bytes(32))}
        file.write_bytes(damaged[damage])
    reads.clear()
    assert digest_of(images, "imagenet") == first
    assert len(reads) == (4 if damage == "a byte" else 10)


def test_a_file_that_cannot_be_read_is_named(images: Path) -> None:
    broken = images / "train" / "dog" / "0.bmp"
    broken.unlink()
    broken.symlink_to("nowhere")
    for kind in KINDS:
        with pytest.raises(ValueError, match=rf"^cannot read image {broken} \(No such file or directory\): replace or"):
            digest_of(images, kind)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_is_no_file_among_the_images_is_named(make: Callable[[Path], None], kind: str, images: Path) -> None:
    make(images / "train" / "cat" / "9.bmp")
    with one_line_error(r"cannot read image .*9\.bmp \(it is no file\): replace or remove it"):
        digest_of(images, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_far_too_large_for_an_image_is_named_and_not_read(kind: str, images: Path) -> None:
    with open(images / "test" / "dog" / "1.bmp", "ab") as file:
        file.truncate(2**31 + 1)  # of which the disk holds nothing
    with one_line_error(r"1\.bmp \(it is larger than 2,147,483,648 bytes\)"):
        digest_of(images, kind)

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from torchvision.datasets import ImageFolder

from mpt_bihalf.data import DataError, Dataset, ImageSet, folder, load_dataset, own_augmentation

SIZES = {"train": 5, "test": 3}


def put(path: Path, size: tuple[int, int] = (16, 16), mode: str = "RGB", seed: int = 0) -> None:
    """Write one image of noise, `size` wide and high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, five training and three test images of each, 16x16, in PNG and JPEG, some of them grey."""
    for seed, (part, count) in enumerate(SIZES.items()):
        for label in ("cat", "dog"):
            for i in range(count):
                suffix, mode = ("jpg", "RGB") if i % 2 else ("png", "L" if i == 2 else "RGB")
                put(tmp_path / "images" / part / label / f"{i}.{suffix}", mode=mode, seed=100 * seed + i + len(label))
    return tmp_path / "images"


def load(path: Path, image_size: int | None = None) -> Dataset:
    return load_dataset(f"folder:{path}", image_size=image_size)


def assert_same(part: ImageSet, path: Path) -> None:
    """Checked against torchvision, image by image."""
    expected = ImageFolder(str(path))
    assert len(part) == len(expected)
    for (image, label), got, got_label in zip(expected, part.images, part.labels, strict=True):
        assert np.array_equal(np.asarray(image), got.permute(1, 2, 0).numpy())
        assert label == got_label


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        pytest.fail("decoded, though the cache should have served")

    monkeypatch.setattr(folder, "_decode", fail)


def test_images_and_classes_are_those_of_torchvision(images: Path) -> None:
    dataset = load(images)
    assert_same(dataset.train, images / "train")
    assert_same(dataset.test, images / "test")
    assert dataset.classes == ("cat", "dog")
    assert dataset.name == f"folder:{images}"


def test_augmentation_and_statistics_are_its_own(images: Path) -> None:
    dataset = load(images)
    pixels = dataset.train.images.double() / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert dataset.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert (dataset.crop_padding, dataset.flip) == (2, True)
    assert load(images, image_size=32).crop_padding == 4
    assert own_augmentation(dataset.name) == (dataset.flip, dataset.random_crop)


def test_validation_images_serve_where_there_is_no_test(images: Path) -> None:
    (images / "test").rename(images / "val")
    assert_same(load(images).test, images / "val")


@pytest.mark.parametrize("threaded_pixels", [0, 10**9])
def test_threads_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threaded_pixels: int) -> None:
    monkeypatch.setattr(folder, "THREADED_PIXELS", threaded_pixels)
    monkeypatch.setattr(folder, "DECODE_CHUNK", 3)
    for i in range(40):
        put(tmp_path / "train" / "a" / f"{i}.png", seed=i)
    put(tmp_path / "test" / "a" / "0.png")
    assert_same(load(tmp_path).train, tmp_path / "train")


def test_second_start_reads_the_cache(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(images)
    forbid_decoding(monkeypatch)
    second = load(images)
    for a, b in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert (first.mean, first.std, first.classes) == (second.mean, second.std, second.classes)


def test_relative_and_absolute_paths_share_the_cache(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(images)
    forbid_decoding(monkeypatch)
    monkeypatch.chdir(images.parent)
    assert load(Path("images")).name == f"folder:{images}"


@pytest.mark.parametrize("change", ["content", "size", "time", "added", "removed", "renamed"])
def test_a_changed_folder_is_decoded_anew_in_the_old_ones_place(images: Path, cache_folder: Path, change: str) -> None:
    bitmap = images / "train" / "cat" / "a.bmp"  # a format whose files of one image size are of one length
    put(bitmap, seed=76)
    load(images)
    file = images / "train" / "cat" / "0.png"
    if change == "content":
        put(file, seed=77)
    elif change == "size":
        status = file.stat()
        put(file, seed=77, mode="L")
        assert file.stat().st_size != status.st_size
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        status = bitmap.stat()
        put(bitmap, seed=78)
        assert bitmap.stat().st_size == status.st_size
        os.utime(bitmap, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    elif change == "added":
        put(images / "train" / "dog" / "9.png", seed=79)
    elif change == "removed":
        file.unlink()
    else:
        file.rename(file.with_name("zz.png"))
    assert_same(load(images).train, images / "train")
    assert len(list(cache_folder.iterdir())) == 1


def test_image_sizes_are_cached_apart(images: Path) -> None:
    assert [load(images, size).image_size for size in (None, 8, None, 8, 16)] == [16, 8, 16, 8, 16]


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_a_damaged_cache_is_rebuilt(
    images: Path, cache_folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(images)
    (file,) = cache_folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "foreign": b"something else", "empty": b""}[damage])
    assert_same(load(images).train, images / "train")
    forbid_decoding(monkeypatch)
    assert_same(load(images).train, images / "train")


def test_an_unwritable_cache_is_only_slower(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MPT_BIHALF_CACHE", str(tmp_path / "file"))
    assert_same(load(images).train, images / "train")
    assert len(recwarn) == 0


def test_differing_sizes_are_named_and_image_size_settles_them(images: Path) -> None:
    odd = images / "train" / "dog" / "1.jpg"
    put(odd, size=(20, 24))
    with pytest.raises(DataError) as error:
        load(images)
    message = str(error.value)
    assert "16x16" in message and f"{odd} is 20x24" in message and "image_size" in message
    dataset = load(images, image_size=16)
    assert dataset.image_size == 16
    expected = np.asarray(Image.open(odd).resize((16, 19), Image.Resampling.BILINEAR))[1:17]
    got = dataset.train.images[6].permute(1, 2, 0).numpy()
    assert np.abs(expected.astype(int) - got.astype(int)).max() <= 1


def test_oblong_images_need_an_image_size(tmp_path: Path) -> None:
    for part in ("train", "test"):
        put(tmp_path / part / "a" / "0.png", size=(10, 12))
    with pytest.raises(DataError, match=r"0\.png is 10x12, not square: set image_size"):
        load(tmp_path)
    assert load(tmp_path, image_size=10).image_size == 10


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
@pytest.mark.parametrize("name", ["train/cat/0.png", "train/cat/1.jpg", "test/dog/2.png"])
def test_an_image_that_cannot_be_read_is_named(images: Path, cache_folder: Path, kind: str, name: str) -> None:
    file = images / name
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}[kind])
    with pytest.raises(DataError) as error:
        load(images)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert list(cache_folder.iterdir()) == []


def test_classes_must_agree(images: Path) -> None:
    (images / "test" / "dog").rename(images / "test" / "dogs")
    with pytest.raises(DataError, match="differ in: dog, dogs"):
        load(images)


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_a_missing_part_is_named(images: Path, missing: str) -> None:
    (images / missing).rename(images.parent / "gone")
    with pytest.raises(DataError) as error:
        load(images)
    assert str(images / (missing or "train")) in str(error.value)


def test_nested_folders_are_in_torchvisions_order(images: Path) -> None:
    for seed, name in enumerate(("b/a/0", "b.c/0", "b/0", "B/0", "a/z", "0a", "b0")):
        put(images / "train" / "cat" / f"{name}.png", seed=seed)
    assert_same(load(images).train, images / "train")


@pytest.mark.parametrize("ending", [".gif", ".jfif", ".bmp", ".webp", ".TIF", ".JPG"])
def test_whatever_pillow_reads_is_among_the_images(images: Path, ending: str) -> None:
    if ending == ".webp" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    file = images / "train" / "cat" / f"z{ending}"
    put(file, seed=9)
    dataset = load(images)
    assert len(dataset.train) == 11
    expected = np.asarray(Image.open(file).convert("RGB"))
    assert np.array_equal(dataset.train.images[5].permute(1, 2, 0).numpy(), expected)
    assert dataset.left_out == ""


def test_what_is_left_out_is_told_and_no_class(images: Path) -> None:
    clean = load(images)
    assert clean.left_out == ""
    train, cat = images / "train", images / "train" / "cat"
    for name in ("notes.txt", "more.TXT", "Thumbs.db", "LICENSE", ".DS_Store"):
        (cat / name).write_text("")
    for folder_name in (".git", "__MACOSX", "cat/.thumbnails"):
        put(train / folder_name / "0.png")
    put(train / "loose.png")
    (images / "test" / "README").write_text("")
    (images / "README.md").write_text("")
    dataset = load(images)
    assert dataset.classes == ("cat", "dog")
    assert torch.equal(dataset.train.images, clean.train.images)
    assert dataset.digest == clean.digest
    start, other, aside, loose = dataset.left_out.replace(": ", "; ", 1).split("; ")
    assert start == f"left out of {images}"
    assert other == "4 files of no image format that Pillow reads (.txt 2, without an ending 1, .db 1)"
    hidden = "train/.git, train/__MACOSX, train/cat/.DS_Store, train/cat/.thumbnails"
    assert aside == f"4 hidden or of a program's own ({hidden})"
    assert loose == "2 files in no class's folder"


def test_many_left_out_are_counted_and_some_named(images: Path) -> None:
    for number in range(7):
        (images / "test" / "dog" / f".{number}").write_text("")
        (images / "test" / "dog" / f"0.x{number}").write_text("")
    told = load(images).left_out
    assert told.count(", ...") == 2 and "\n" not in told
    assert "7 files of no image format" in told and "7 hidden" in told


@pytest.mark.parametrize("inside", ["", ".hidden.png", "text.txt", ".git/0.png"])
def test_a_class_without_an_image_in_it_is_named(images: Path, inside: str) -> None:
    for part in ("train", "test"):
        (images / part / "emu").mkdir()
    put(images / "train" / "emu" / "0.png")
    if inside.endswith(".png"):
        put(images / "test" / "emu" / inside)
    elif inside:
        (images / "test" / "emu" / inside).write_text("")
    with pytest.raises(DataError, match="test has no image of class emu: it is to hold one folder of images a class"):
        load(images)


@pytest.mark.parametrize("name", ["train", "train/cat", "test/dog/deep"])
def test_a_folder_that_cannot_be_read_is_no_empty_one(images: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(images / "test" / "dog" / "deep" / "0.png")
    scandir = os.scandir

    def forbidden(path: str) -> object:
        if os.fspath(path) == str(images / name):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(DataError, match=rf"^cannot read .*Permission denied: '{images / name}'$"):
        load(images)


def test_progress_is_shown_on_a_terminal_only(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(images)
    assert capsys.readouterr() == ("", "")


def test_more_images_than_memory_holds_are_told(images: Path) -> None:
    with pytest.raises(DataError, match="GiB: set a smaller image_size"):
        load(images, image_size=10_000_000)


def test_links_that_lead_in_circles_are_named(images: Path) -> None:
    (images / "train" / "cat" / "again").symlink_to(".")
    with pytest.raises(DataError, match=r"again is reached by more than 16 ways: remove links that lead in circles"):
        load(images)


def test_links_to_one_folder_are_followed_each(images: Path) -> None:
    put(images / "more" / "0.png")
    for name in ("a", "b"):
        (images / "train" / "cat" / name).symlink_to(images / "more")
    assert len(load(images).train) == 2 * SIZES["train"] + 2

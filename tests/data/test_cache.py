from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mpt_bihalf import files
from mpt_bihalf.data import cache


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {"pixels": torch.randint(256, (50, 4, 4, 3), dtype=torch.uint8), "labels": torch.arange(50)}


def test_what_is_written_is_read(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "deep" / "file.pt"
    cache.write(file, "mark", tensors)
    read = cache.read(file, "mark")
    assert read is not None and read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert list(file.parent.iterdir()) == [file]


def test_another_fingerprint_reads_nothing(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    cache.write(tmp_path / "file.pt", "mark", tensors)
    assert cache.read(tmp_path / "file.pt", "another") is None


def test_a_missing_file_reads_nothing(tmp_path: Path) -> None:
    assert cache.read(tmp_path / "file.pt", "mark") is None


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_reads_nothing(tmp_path: Path, tensors: dict[str, torch.Tensor], part: float) -> None:
    file = tmp_path / "file.pt"
    cache.write(file, "mark", tensors)
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    assert cache.read(file, "mark") is None


def test_a_changed_byte_of_a_tensor_is_noticed(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "file.pt"
    cache.write(file, "mark", tensors)
    content = bytearray(file.read_bytes())
    start = content.index(tensors["pixels"].numpy().tobytes())
    content[start + 100] ^= 1
    file.write_bytes(content)
    assert cache.read(file, "mark") is None


@pytest.mark.parametrize("foreign", [[1, 2], {"tensors": 3}, {"fingerprint": "mark", "digest": "", "tensors": {}}])
def test_a_foreign_file_reads_nothing(tmp_path: Path, foreign: object) -> None:
    torch.save(foreign, tmp_path / "file.pt")
    assert cache.read(tmp_path / "file.pt", "mark") is None


def make_zero(file: Path) -> None:
    file.symlink_to("/dev/zero")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, make_zero])
def test_what_is_no_file_reads_nothing_and_does_not_hang(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "file.pt")
    assert cache.read(tmp_path / "file.pt", "mark") is None


def test_a_pipe_is_replaced(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    os.mkfifo(tmp_path / "file.pt")
    cache.write(tmp_path / "file.pt", "mark", tensors)
    assert cache.read(tmp_path / "file.pt", "mark") is not None


def test_tensors_larger_than_the_file_read_nothing(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {**tensors, "pixels": tensors["pixels"][:1, :1, :1, :1].expand(50, 40, 40, 3)}
    cache.write(tmp_path / "file.pt", "mark", large)
    monkeypatch.setattr(cache, "_digest", lambda _: pytest.fail("that of the larger ones is worked out"))
    assert cache.read(tmp_path / "file.pt", "mark") is None


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), tmp_path / "file.pt")
    assert cache.read(tmp_path / "file.pt", "mark") is None
    assert not (tmp_path / "sprung").exists()


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    (tmp_path / "file").write_text("in the way")
    cache.write(tmp_path / "file" / "file.pt", "mark", tensors)
    assert (tmp_path / "file").read_text() == "in the way"


def test_what_a_killed_process_left_of_a_file_is_removed_by_the_next(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    file, leftover = tmp_path / "file.pt", tmp_path / ".file.pt.0123456789ab"
    for use in (lambda: cache.write(file, "mark", tensors), lambda: cache.read(file, "mark")):
        leftover.write_text("half")
        use()
        assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    file = tmp_path / "file.pt"
    cache.write(file, "old", tensors)

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, failing, full)
    cache.write(file, "new", tensors)
    assert cache.read(file, "new") is None and cache.read(file, "old") is not None
    assert list(tmp_path.iterdir()) == [file]

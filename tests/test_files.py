from __future__ import annotations

import csv
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from mpt_bihalf import files
from mpt_bihalf.files import open_file, read_json, remove_leftovers, write_csv, write_json, write_text, write_whole

HEX = "0123456789ab"
HANGING_WRITER = """
import sys, time
from pathlib import Path
from mpt_bihalf.files import write_whole

def write(file):
    file.write(b"new" * 1000)
    file.flush()
    print("half", flush=True)
    time.sleep(60)

write_whole(Path(sys.argv[1]), write)
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    return path


@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt(), SystemExit(1)])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(old: Path, fault: BaseException) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"new" * 100_000)
        file.flush()
        raise fault

    with pytest.raises(type(fault), match=str(fault) or None):
        write_whole(old, write)
    assert old.read_bytes() == b"old"
    assert list(old.parent.iterdir()) == [old]


def test_a_full_disk_is_told_with_the_files_name_and_leaves_the_old_file(small_disk: Path) -> None:
    path = small_disk / "file.txt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"No space left on device: .*/disk/file\.txt'$"):
        write_whole(path, lambda file: file.write(bytes(100_000_000)))
    assert path.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [path]


def test_only_what_a_writer_of_the_file_left_unfinished_is_removed(tmp_path: Path) -> None:
    names = ("a[1].txt", ".a1.txt.{}", "a[1].txt.{}", ".a[1].txt", ".a[1].txt.swp", ".a[1].txt.{}0", ".a[1].txtx.{}")
    stay = [tmp_path / name.format(HEX) for name in names]
    for path in (*stay, tmp_path / f".a[1].txt.{HEX}", tmp_path / f".a[1].txt.{HEX[::-1]}"):
        path.write_text("x")
    (tmp_path / ".a[1].txt.111111111111").symlink_to(stay[0])
    (tmp_path / ".a[1].txt.222222222222").mkdir()
    os.mkfifo(tmp_path / ".a[1].txt.333333333333")
    remove_leftovers(tmp_path / "a[1].txt")
    remove_leftovers(tmp_path / "none.txt")
    remove_leftovers(tmp_path / "none" / "none.txt")
    odd = [tmp_path / f".a[1].txt.{digit * 12}" for digit in "123"]
    assert sorted(tmp_path.iterdir()) == sorted([*stay, *odd])


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(old: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", HANGING_WRITER, str(old)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    (unfinished,) = old.parent.glob(".file.txt.*")
    write_text(old, "new")
    assert unfinished.exists()
    writer.kill()
    writer.wait()
    writer.stdout.close()
    write_text(old, "newer")
    assert list(old.parent.iterdir()) == [old]
    assert old.read_text() == "newer"


@pytest.mark.parametrize("has_it", [True, False])
def test_a_writer_begins_anew_where_its_new_file_was_removed_or_is_about_to_be(
    has_it: bool, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = files._lock, []

    def late(file: BinaryIO) -> None:
        if not removed:
            removed.append(Path(file.name))
            removed[0].unlink()
            if has_it:
                raise BlockingIOError
        lock(file)

    monkeypatch.setattr(files, "_lock", late)
    write_text(old, "new")
    assert removed
    assert old.read_text() == "new"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("missing", [True, False])
def test_where_there_are_no_locks_files_are_written_and_leftovers_stay(
    missing: bool, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if missing:
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", none)
    leftover = old.parent / f".file.txt.{HEX}"
    leftover.write_text("x")
    write_text(old, "new")
    assert old.read_text() == "new"
    assert sorted(old.parent.iterdir()) == [leftover, old]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127 + "x"])
def test_a_name_may_be_as_long_as_the_system_has_it(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(OSError, match=rf"File name too long: '.*/{name}y'$"):
        write_text(tmp_path / f"{name}y", "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_need_not_be_of_the_locale(tmp_path: Path) -> None:
    code = "import sys, pathlib; from mpt_bihalf.files import write_text; write_text(pathlib.Path(sys.argv[1]), 'x')"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "é")], env={**os.environ, **plain}, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["é"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    for name in ("link", "dangling"):
        write_text(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "made").exists()


def test_a_first_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "file.txt", lambda file: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_writing_leaves_the_old_file_whole(old: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", HANGING_WRITER, str(old)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert old.read_bytes() == b"old"
    write_text(old, "newer")
    assert old.read_bytes() == b"newer"


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(old: Path) -> None:
    seen = []

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        seen.append(old.read_bytes())

    write_whole(old, write)
    assert seen == [b"old"]
    assert old.read_bytes() == b"new"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file.txt", "x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o666 & ~umask


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/no/file\.txt'$"):
        write_text(tmp_path / "no" / "file.txt", "x")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "no").touch()
    with pytest.raises(NotADirectoryError, match=r"/no/file\.txt'$"):
        write_text(tmp_path / "no" / "file.txt", "x")


def test_json_is_indented_and_ends_with_a_line_break(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, 0.1]})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    1,\n    0.1\n  ]\n}\n'


def test_csv_has_the_columns_of_all_rows_in_order_of_appearance(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [{"a": 1, "b": "x, y"}, {"c": 0.1, "a": 2}])
    assert (tmp_path / "x.csv").read_bytes() == b'a,b,c\n1,"x, y",\n2,,0.1\n'


def test_csv_keeps_every_digit_and_every_letter(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [{"number": 1 / 3, "text": 'é "quoted"\nline'}])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (float(row["number"]), row["text"]) == (1 / 3, 'é "quoted"\nline')


def test_two_writers_of_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    program = "import sys; from pathlib import Path; from mpt_bihalf.files import write_text\n"
    program += "for _ in range(50): write_text(Path(sys.argv[1]), sys.argv[2] * 100_000)"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "ab"]
    contents = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            contents.add(path.read_text())
        time.sleep(0.001)
    assert all(writer.returncode == 0 for writer in writers)
    assert contents | {path.read_text()} <= {"a" * 100_000, "b" * 100_000}
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, 0.1, "é"]})
    assert read_json(tmp_path / "x.json") == {"a": [1, 0.1, "é"]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 1_000_000,
        b"[" * 34 + b"]" * 34,
        b"9" * 10_000,
        b"9223372036854775808",
        b"[-9223372036854775809]",
        b" " * (4 * 2**20) + b"1",
        b"\xef\xbb\xbf{}",
    ],
    ids=["empty", "cut off", "no text", "deep", "too deep", "huge", "too large", "too small", "long", "marked"],
)
def test_what_is_no_json_or_too_much_of_it_is_a_value_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "x.json")


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="no file"):
        read_json(tmp_path / "x.json")


def test_a_pipe_or_a_folder_is_no_file_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="no file"):
            read_json(path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing")
    with pytest.raises(OSError):
        read_json(tmp_path / "loop")


def test_json_as_deep_and_with_numbers_as_large_as_they_may_be_is_read(tmp_path: Path) -> None:
    inner: Any = {"a": [2**63 - 1, -(2**63), 1e300, None]}
    for _ in range(30):
        inner = [inner]
    write_json(tmp_path / "x.json", inner)
    assert read_json(tmp_path / "x.json") == inner


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ValueError, match="is no file"):
        open_file(tmp_path / "x")

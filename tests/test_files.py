from __future__ import annotations

import csv
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from mpt_bihalf.files import read_json, remove_leftovers, write_csv, write_json, write_text, write_whole

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


def test_only_what_writers_of_the_files_named_left_unfinished_is_removed(tmp_path: Path) -> None:
    stay = [tmp_path / name for name in ("a.txt", ".b.txt.xyz", "a.txt.xyz", ".a.txt", ".a[1].txtx")]
    for path in (*stay, tmp_path / ".a.txt.xyz", tmp_path / ".a.txt.uvw", tmp_path / ".a[1].txt.xyz"):
        path.write_text("x")
    remove_leftovers(tmp_path, ["a.txt", "a[1].txt", "none.txt"])
    assert sorted(tmp_path.iterdir()) == sorted(stay)


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
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "no" / "file.txt", "x")
    assert list(tmp_path.iterdir()) == []


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
    [b"", b"{", b"\xff\xfe\x00", b"[" * 1_000_000, b"9" * 10_000, b" " * (4 * 2**20) + b"1", b"\xef\xbb\xbf{}"],
    ids=["empty", "cut off", "no text", "deep", "a huge number", "large", "marked"],
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

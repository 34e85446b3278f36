from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from mpt_bihalf import sums
from mpt_bihalf.sums import SUMS, Damaged, read_sums, read_whole, write_summed

TEXTS = {"b.csv": "1,2\n", "a.json": "{}\n"}


def test_what_is_written_is_read_back_and_the_list_is_that_of_sha256(tmp_path: Path) -> None:
    write_summed(tmp_path, TEXTS)
    assert {name: read_whole(tmp_path, name).decode() for name in TEXTS} == TEXTS
    known = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in TEXTS.items()}
    assert read_sums(tmp_path) == known
    assert (tmp_path / SUMS).read_text() == "".join(f"{known[name]}  {name}\n" for name in ("a.json", "b.csv"))


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_sha256sum_checks_a_folder_by_the_list(tmp_path: Path) -> None:
    write_summed(tmp_path, TEXTS)
    check = ["sha256sum", "--check", "--strict", "--quiet", SUMS]
    assert subprocess.run(check, cwd=tmp_path, check=False).returncode == 0
    (tmp_path / "b.csv").write_text("1,3\n")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 1


def test_no_byte_of_file_or_list_can_change_or_be_cut_off_unnoticed(tmp_path: Path) -> None:
    write_summed(tmp_path, {"a": "x=1\n"})
    for name in ("a", SUMS):
        whole = (tmp_path / name).read_bytes()
        changed = [whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1 :] for i in range(len(whole)) for bit in (1, 32)]
        for content in [*changed, *(whole[:i] for i in range(len(whole))), whole + b"\n", whole * 2 + b"x"]:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(Damaged, match="is damaged"):
                read_whole(tmp_path, "a")
        (tmp_path / name).write_bytes(whole)
    assert read_whole(tmp_path, "a") == b"x=1\n"


def test_a_file_that_the_list_does_not_tell_of_is_damaged(tmp_path: Path) -> None:
    write_summed(tmp_path, TEXTS)
    (tmp_path / "foreign").write_text("x")
    with pytest.raises(Damaged, match=f"{tmp_path / 'foreign'} is damaged"):
        read_whole(tmp_path, "foreign")


def test_where_there_is_no_list_whatever_is_there_is_taken(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    assert read_whole(tmp_path, "old") == b"x"
    assert read_sums(tmp_path) is None
    with pytest.raises(FileNotFoundError):
        read_whole(tmp_path, "missing")


def test_what_is_no_file_or_too_large_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_text("12345")
    monkeypatch.setattr(sums, "LARGEST_FILE", 4)
    for name in ("folder", "large"):
        with pytest.raises(Damaged, match=f"{tmp_path / name} is"):
            read_whole(tmp_path, name)


def test_the_list_begins_anew_unless_other_files_are_named(tmp_path: Path) -> None:
    write_summed(tmp_path, TEXTS)
    write_summed(tmp_path, {"c": "3"}, TEXTS)
    assert set(read_sums(tmp_path) or {}) == {"a.json", "b.csv", "c"}
    (tmp_path / "a.json").write_text("[]\n")  # and what was damaged stays so
    write_summed(tmp_path, {"c": "4"}, TEXTS)
    with pytest.raises(Damaged):
        read_whole(tmp_path, "a.json")
    write_summed(tmp_path, {"c": "5"})
    assert set(read_sums(tmp_path) or {}) == {"c"}


def test_the_first_list_of_a_folder_takes_other_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    write_summed(tmp_path, {"new": "y"}, ("old", "missing"))
    assert read_whole(tmp_path, "old") == b"x"
    assert set(read_sums(tmp_path) or {}) == {"old", "new"}


def test_a_list_that_is_none_is_not_added_to(tmp_path: Path) -> None:
    write_summed(tmp_path, TEXTS)
    (tmp_path / SUMS).write_text("nothing\n")
    with pytest.raises(Damaged, match=f"{SUMS} is damaged"):
        write_summed(tmp_path, {"c": "3"}, TEXTS)
    assert not (tmp_path / "c").exists()
    write_summed(tmp_path, TEXTS)
    assert read_whole(tmp_path, "a.json") == b"{}\n"


def test_a_kill_between_the_list_and_a_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_summed(tmp_path, TEXTS)

    def killed(path: Path, write: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sums, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            write_summed(tmp_path, {"b.csv": "1,3\n"}, TEXTS)
    with pytest.raises(Damaged):
        read_whole(tmp_path, "b.csv")
    assert read_whole(tmp_path, "a.json") == b"{}\n"

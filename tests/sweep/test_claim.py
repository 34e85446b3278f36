from __future__ import annotations

import fcntl
import os
import platform
import stat
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from mpt_bihalf.sweep import claim
from mpt_bihalf.sweep.claim import claimed, held
from tests.processes import PROCESSES
from tests.sweep.conftest import holder


def hold(folder: Path, is_ours: Any) -> None:
    with claimed(folder) as ours:
        is_ours.send(ours)
        time.sleep(600)


def test_one_of_two_gets_the_run_and_the_other_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with claimed(folder) as first:
        assert first
        with claimed(folder) as second:
            assert not second
        assert held(folder)
    assert not held(folder)
    with claimed(folder) as third:
        assert third


def test_a_claim_tells_who_holds_it_and_goes_with_the_holder(tmp_path: Path) -> None:
    before = time.time()
    with claimed(tmp_path):
        told = holder(tmp_path)
        assert told is not None
        assert (told["host"], told["pid"]) == (platform.node(), os.getpid())
        assert before <= told["since"] <= time.time()
    assert holder(tmp_path) is None
    assert not (tmp_path / "claim.json").exists()


def test_who_only_looks_keeps_nobody_from_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "claim.lock").open("w") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        monkeypatch.setattr(claim.time, "sleep", lambda seconds: looked_at.close())
        with claimed(tmp_path) as ours:
            assert ours
            assert looked_at.closed


def test_a_claim_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path):
        raise KeyboardInterrupt
    with claimed(tmp_path) as ours:
        assert ours


def test_a_claim_whose_holder_was_killed_is_taken_over(tmp_path: Path, begin: Callable[..., BaseProcess]) -> None:
    told, is_ours = PROCESSES.Pipe(duplex=False)
    process = begin(hold, tmp_path, is_ours)
    assert told.recv()
    assert (holder(tmp_path) or {})["pid"] == process.pid
    with claimed(tmp_path) as ours:
        assert not ours
    process.kill()
    process.join()
    assert (tmp_path / "claim.json").exists()  # nobody took it away
    assert holder(tmp_path) is None
    with claimed(tmp_path) as ours:
        assert ours


def test_a_claim_is_no_way_to_write_elsewhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "claim.lock").symlink_to(victim)
    with pytest.raises(OSError), claimed(folder):
        pass
    assert victim.read_text() == "precious"
    assert list(folder.iterdir()) == [folder / "claim.lock"]


def test_a_file_system_without_locks_is_told_as_a_fault_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*arguments: object, **options: object) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(OSError, match=r"claim\.lock cannot be locked: no flock"), claimed(tmp_path):
        pass


CLAIM = '{"host": "here", "pid": 7, "since": 5.5}'


def test_nobody_holds_what_nobody_claims(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with FileLock(tmp_path / "claim.lock"):
        assert holder(tmp_path) is None


def test_looking_leaves_no_lock_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "claim.json").write_text(CLAIM)
    assert holder(tmp_path) is None
    assert [file.name for file in tmp_path.iterdir()] == ["claim.json"]
    (tmp_path / "claim.lock").touch()
    assert holder(tmp_path) is None
    with FileLock(tmp_path / "claim.lock", timeout=0):
        with pytest.raises(Timeout):
            FileLock(tmp_path / "claim.lock", timeout=0).acquire()
        assert holder(tmp_path) is not None


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("", {}),
        ("[]", {}),
        ("3", {}),
        ("[" * 100_000, {}),
        ('{"host": 3, "pid": "7", "since": "x"}', {}),
        ('{"host": "h", "pid": true, "since": NaN}', {"host": "h"}),
        ('{"host": "h", "pid": -1, "since": 1e999}', {"host": "h"}),
        ('{"pid": 7, "more": 1}', {"pid": 7}),
    ],
)
def test_of_a_damaged_claim_only_what_is_sound_is_told(text: str, known: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "claim.json").write_text(text)
    with FileLock(tmp_path / "claim.lock"):
        assert holder(tmp_path) == known


def test_a_pipe_in_the_place_of_the_lock_or_the_claim_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "claim.json").write_text(CLAIM)
    os.mkfifo(tmp_path / "claim.lock")
    holder(tmp_path)
    (tmp_path / "claim.json").unlink()
    os.mkfifo(tmp_path / "claim.json")
    holder(tmp_path)


def test_who_may_only_read_sees_the_holder(tmp_path: Path, as_nobody: Callable[[], None]) -> None:
    (tmp_path / "claim.json").write_text(CLAIM)
    with FileLock(tmp_path / "claim.lock"):
        (tmp_path / "claim.lock").chmod(0o444)
        as_nobody()
        assert holder(tmp_path) is not None
    assert holder(tmp_path) is None
    assert stat.S_IMODE((tmp_path / "claim.lock").stat().st_mode) == 0o444

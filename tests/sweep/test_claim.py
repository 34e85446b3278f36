from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpt_bihalf.sweep.claim import claimed, held, holder

HOLD = """
    import sys, time
    from pathlib import Path
    from mpt_bihalf.sweep.claim import claimed
    with claimed(Path(sys.argv[1])) as ours:
        print(ours, flush=True)
        time.sleep(60)
"""


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


def test_a_claim_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path):
        raise KeyboardInterrupt
    with claimed(tmp_path) as ours:
        assert ours


def test_a_claim_whose_holder_was_killed_is_taken_over(
    tmp_path: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    process = python(HOLD, tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "True\n"
    assert (holder(tmp_path) or {})["pid"] == process.pid
    with claimed(tmp_path) as ours:
        assert not ours
    process.send_signal(signal.SIGKILL)
    process.wait()
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

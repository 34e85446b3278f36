"""A command speaks in plain text, and ends in one line with the right status, whatever happens around it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mpt_bihalf
from mpt_bihalf.endings import fail, one_line, plain, run_command, show, tell
from mpt_bihalf.signals import Stopped

ROOT = Path(__file__).parents[1]
DOORS = [["-m", "mpt_bihalf"], *([str(script)] for script in sorted((ROOT / "experiments").glob("*.py")))]
# In the place of torch: what imports it is interrupted.
INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"


def start(*arguments: str, path: Path | None = None, **options: object) -> subprocess.Popen[str]:
    """A Python program. path: a folder whose modules come first."""
    paths = [str(place) for place in (path, ROOT) if place]
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "", **options.pop("env", {})},  # type: ignore[dict-item]
        stderr=options.pop("stderr", subprocess.PIPE),  # type: ignore[call-overload]
        text=True,
        **options,
    )


# Without torch, which takes seconds to import.
ALONE = """
import os, signal, sys, time, types
from contextlib import nullcontext
alone = {"PartFailed": ZeroDivisionError, "is_to_tell": lambda: True, "lead": lambda command: command()}
alone["over_when_told"] = nullcontext
sys.modules["mpt_bihalf.distributed"] = types.SimpleNamespace(**alone)
from mpt_bihalf.endings import run_command, show
def main():
"""


def command(body: str) -> str:
    """A program whose command is this."""
    return ALONE + "\n".join(f"    {line}" for line in body.splitlines()) + "\nrun_command(main)"


def test_a_message_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        fail("one\n  two")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: one two\n"


@pytest.mark.parametrize("fault", [ValueError("bad\nvalue"), FileNotFoundError(2, "No such file", "x")])
def test_what_a_user_can_mend_ends_in_one_line(fault: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise fault

    with pytest.raises(SystemExit) as end:
        run_command(command)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: " + str(fault).replace("\n", " ") + "\n"


def test_a_fault_of_the_program_keeps_its_trace() -> None:
    def command() -> None:
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        run_command(command)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("text", ["", "half of it is lost"])
def test_a_command_that_was_stopped_ends_with_the_signals_status_and_what_there_is_to_say(
    signum: int, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise Stopped(signum, text)

    with pytest.raises(SystemExit) as end:
        run_command(command)
    assert end.value.code == status
    assert capsys.readouterr().err == f"interrupted: {text or 'the same command goes on from here'}\n"


def test_termination_ends_a_command_with_143(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("still here")

    with pytest.raises(SystemExit) as end:
        run_command(command)
    assert end.value.code == 143
    assert "goes on from here" in capsys.readouterr().err


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_command(command)
    assert end.value.code == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain é ü", "plain é ü"),
        ("two\nlines\tand  spaces ", "two lines and spaces"),
        ("\x1b[31mred\x1b[0m", "[31mred [0m"),
        ("\ud800 \u202e\x00\x07", ""),
        (3, "3"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_foreign_text_is_shown_as_one_plain_line(text: object, line: str) -> None:
    assert one_line(text) == line


def test_whoever_stops_reading_ends_a_command_quietly() -> None:
    program = start("-c", command("print('line\\n' * 100_000)"), stdout=subprocess.PIPE)
    assert program.stdout and program.stderr
    program.stdout.readline()
    program.stdout.close()
    assert program.stderr.read() == ""
    program.stderr.close()
    assert program.wait() == 1


@pytest.mark.parametrize("door", DOORS, ids=[door[-1].rsplit("/", 1)[-1] for door in DOORS])
def test_an_interrupt_during_the_imports_ends_a_command_in_one_line(door: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(INTERRUPTED)
    program = start(*door, "--help", path=tmp_path, stdout=subprocess.PIPE)
    assert program.communicate(timeout=60) == ("", "interrupted: nothing was begun\n")
    assert program.returncode == 130


def test_of_the_processes_of_torchrun_only_the_first_tells_of_it(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(INTERRUPTED)
    program = start("-m", "mpt_bihalf", path=tmp_path, env={"RANK": "1"})
    assert (program.communicate(timeout=60)[1], program.returncode) == ("", 130)


def test_the_package_alone_imports_nothing_that_takes_long() -> None:
    told = "import sys, mpt_bihalf.endings\nsys.exit(bool({'torch', 'numpy', 'tqdm'} & sys.modules.keys()))"
    assert start("-c", told).wait(60) == 0


def test_an_unknown_backend_of_matplotlib_matters_to_no_command() -> None:
    body = "with starting():\n    from matplotlib.figure import Figure\n"
    program = start("-c", "from mpt_bihalf.endings import starting\n" + body, env={"MPLBACKEND": "nonsense"})
    assert (program.communicate(timeout=60)[1], program.returncode) == ("", 0)


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        torch.OutOfMemoryError("no room on the device"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("lib.so: failed to map segment from shared object"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_want_of_memory_is_one_line_and_nobodys_fault(fault: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise fault

    with pytest.raises(SystemExit) as end:
        run_command(body)
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory: ") and told.count("\n") == 1
    assert (str(fault) or "MemoryError") in told


CLOSED = [[1], [2], [1, 2], [0, 1, 2]]


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_what_is_told_to_a_closed_stream_goes_nowhere_and_into_no_file(closed: list[int], tmp_path: Path) -> None:
    body = "file = open(sys.argv[1], 'w')\nshow('told')\nprint('warned', file=sys.stderr)\nfile.write('kept')"
    before = "import os\nfor number in {}: os.close(number)\nos.execv({!r}, [{!r}, '-c', {!r}, {!r}])"
    again = before.format(closed, sys.executable, sys.executable, command(body), str(tmp_path / "file"))
    program = start("-c", again, stdout=subprocess.PIPE)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0
    assert (out, err) == ("" if 1 in closed else "told\n", "" if 2 in closed else "warned\n")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_full_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        program = start("-c", command("show('told')"), stdout=full)
        err = program.communicate(timeout=60)[1]
    assert err == "error: [Errno 28] No space left on device: 'standard output'\n"
    assert program.returncode == 2


def test_letters_that_the_output_has_not_are_spelt_otherwise() -> None:
    program = start(
        "-c", command("show('1 ± 2…, é')"), stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii:strict"}
    )
    assert program.communicate(timeout=60) == ("1 +- 2..., ?\n", "")
    assert program.returncode == 0


@pytest.mark.parametrize(("signum", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.{})\ntime.sleep(60)",
        "print('not flushed yet')\nos.kill(os.getpid(), signal.{})\ntime.sleep(60)",
        "try:\n    os.kill(os.getpid(), signal.{})\n    time.sleep(60)\nfinally:\n    show('more')",
        "try:\n    os.kill(os.getpid(), signal.{})\n    time.sleep(60)\nfinally:\n    raise RuntimeError('odd')",
    ],
    ids=["silent", "with something to flush", "with something to tell", "with something to clean up"],
)
def test_a_signal_ends_a_command_with_its_own_status_though_nobody_reads(body: str, signum: str, status: int) -> None:
    reader, writer = os.pipe()
    program = start("-c", command(body.format(signum)), stdout=writer, stderr=writer)
    os.close(writer)
    os.close(reader)
    program.wait(60)
    assert program.returncode == status


def test_whoever_stops_reading_errors_ends_a_command_quietly_too() -> None:
    reader, writer = os.pipe()
    program = start("-c", command("print('warned', file=sys.stderr)"), stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    os.close(reader)
    assert program.communicate(timeout=60)[0] == ""
    assert program.returncode == 1


def test_text_is_shown_without_what_would_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a  table\n\x1b]0;title\x07\x9b31m\r\u202e b\ud800"
    show(text)
    tell(text)
    out, err = capsys.readouterr()
    assert out == "a  table\n ]0;title  31m   b \n" == plain(text) + "\n"
    assert err == "a table ]0;title 31m b\n"


def test_a_full_output_is_named_beside_bars_too() -> None:
    with open("/dev/full", "w") as full:
        program = start("-c", command("from tqdm import tqdm\nbar = tqdm(total=1)\nshow('told')"), stdout=full)
        assert "error: [Errno 28] No space left on device: 'standard output'" in program.communicate(timeout=60)[1]
    assert program.returncode == 2


def test_help_to_a_full_output_is_an_error_too() -> None:
    with open("/dev/full", "w") as full:
        body = "from mpt_bihalf.commandline import Parser\nParser(prog='x').parse_args(['--help'])"
        program = start("-c", command(body), stdout=full)
        assert "No space left on device: 'standard output'" in program.communicate(timeout=60)[1]
    assert program.returncode == 2


def test_what_is_told_needs_no_more_of_tqdm_than_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", type(sys)("tqdm"))  # half imported, as for want of memory
    tell("told")
    assert capsys.readouterr().err == "told\n"


def test_an_interrupt_between_the_imports_and_the_command_is_one_line_too() -> None:
    before = ALONE.partition("def main():")[0]
    between = (
        "from mpt_bihalf.endings import starting\nwith starting('__main__'): pass\nos.kill(os.getpid(), signal.SIGINT)"
    )
    program = start("-c", f"{before}\n{between}\ntime.sleep(60)")
    assert program.communicate(timeout=60)[1] == "interrupted: nothing was begun\n"
    assert program.returncode == 130


def test_a_module_that_is_imported_leaves_interrupts_as_they_are() -> None:
    body = "from mpt_bihalf.endings import starting\nimport signal\nwith starting('prune_sweep'): pass\n"
    body += "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    program = start("-c", body)
    assert (program.communicate(timeout=60)[1], program.returncode) == ("", 0)


def test_the_package_fetches_each_name_once_and_knows_no_others() -> None:
    assert mpt_bihalf.binarize is vars(mpt_bihalf)["binarize"]
    for name in ("nothing", "a.b", "measures.entropy", "_x", ""):
        assert getattr(mpt_bihalf, name, None) is None
    assert mpt_bihalf.models.create_model is mpt_bihalf.create_model

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from mpt_bihalf.commandline import fail, one_line, parse, run_command
from mpt_bihalf.signals import Stopped


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command."""

    long_name: int = 3
    """how many of them"""
    share: float = 0.5
    """a share"""
    limit: int | None = None
    """may be left out"""
    names: list[str] = field(default_factory=list)
    """several words"""
    text: str = ""
    """a text"""
    rates: list[float] = field(default_factory=lambda: [0.1, 0.5])
    """several numbers"""


def read(*arguments: str) -> Options:
    return parse(Options, "A command.", list(arguments))


def test_options_not_given_take_their_defaults() -> None:
    assert read() == Options()


def test_options_are_typed_and_written_with_dashes() -> None:
    given = read("--long-name", "7", "--share", "1e-3", "--limit", "2", "--names", "a", "b", "--text=--x")
    assert given == Options(long_name=7, share=0.001, limit=2, names=["a", "b"], text="--x")


@pytest.mark.parametrize("text", ["--x", "", " ", "-1", "ü"])
def test_any_text_reaches_a_text_option(text: str) -> None:
    assert read(f"--text={text}") == Options(text=text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--nothing"], "--nothing"),
        (["--text=--"], "--text"),
        (["--long_name", "1"], "--long_name"),
        (["--long", "1"], "--long"),
        (["--long-name", "x"], "--long-name"),
        (["--long-name"], "--long-name"),
        (["--limit"], "--limit"),
        (["--limit", "1.5"], "--limit"),
        (["--share", "half"], "--share"),
        (["stray"], "stray"),
        (["--share", "a\nb"], "--share"),
    ],
)
def test_a_bad_option_is_told_in_one_line_with_status_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        read(*arguments)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err
    assert out == ""


def test_help_tells_each_option_its_meaning_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read("--help")
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in (
        "A command.",
        "--long-name",
        "how many of them (default: 3)",
        "--names",
        "several words",
        "several numbers (default: 0.1 0.5)",
    ):
        assert word in text
    assert "--long_name" not in text


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
    program = "from mpt_bihalf.commandline import run_command\nrun_command(lambda: print('line\\n' * 100_000))"
    command = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout and command.stderr
    command.stdout.readline()
    command.stdout.close()
    assert command.stderr.read() == b""
    command.stderr.close()
    assert command.wait() == 1

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from mpt_bihalf.commandline import parse


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

"""The README's Python runs as it stands there, and its commands name things that exist."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_there_are_python_blocks() -> None:
    assert len(BLOCKS) >= 3


def test_each_option_in_the_readme_is_one_of_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpt_bihalf.commandline import parse
    from mpt_bihalf.sweep import PruneSweep

    commands = re.findall(r"prune_sweep\.py ((?:[^\n`]|\\\n)*)", README.replace("\\\n", " "))
    assert len(commands) >= 2
    for arguments in commands:
        assert parse(PruneSweep, "", shlex.split(arguments)).runs()


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README) + re.findall(
        r"`((?:notebooks|experiments)/[\w./]+)`", README
    )
    assert links
    for link in links:
        assert (ROOT / link).exists(), link

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy
import pytest
import torch

import mpt_bihalf
from mpt_bihalf.training import Run
from mpt_bihalf.training.environment import commit_of

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit and one tracked file."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "file").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["tag", "-am", "x", "v1"]):
        subprocess.run([*GIT, *command], cwd=root, check=True)
    return root


def head(root: Path) -> str:
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_run_tells_where_it_was_made(trained: Callable[..., tuple[Run, Path]]) -> None:
    _, folder = trained(epochs=1)
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["mpt_bihalf"] == mpt_bihalf.__version__
    assert (facts["torch"], facts["numpy"], facts["threads"]) == (torch.__version__, numpy.__version__, 1)
    assert facts["torchvision"] == version("torchvision")
    assert facts["device"] and facts["processor"] and facts["platform"] and facts["python"]
    root = Path(mpt_bihalf.__file__).parents[1]
    if (root / ".git").exists():
        assert facts["commit"].removesuffix("-dirty") == head(root)


def test_the_commit_is_that_of_the_checkout_and_says_if_files_differ(checkout: Path) -> None:
    commit = head(checkout)
    assert commit_of(checkout) == commit and len(commit) == 40
    commit_of.cache_clear()
    (checkout / "untracked").write_text("x")
    assert commit_of(checkout) == commit
    commit_of.cache_clear()
    (checkout / "file").write_text("2")
    assert commit_of(checkout) == f"{commit}-dirty"


def test_a_checkout_further_up_is_somebody_elses(checkout: Path) -> None:
    (checkout / "site-packages").mkdir()
    assert commit_of(checkout / "site-packages") is None


def test_without_a_commit_or_without_git_there_is_none(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").write_text("nonsense")
    assert commit_of(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(checkout) is None

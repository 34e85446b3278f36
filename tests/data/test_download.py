from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest

from mpt_bihalf.data import DataError
from mpt_bihalf.data.download import fetch


def good(folder: str) -> None:
    print("Downloading ...")
    (Path(folder) / "things").mkdir()
    (Path(folder) / "things" / "a").write_text("whole")


def test_a_download_is_moved_in_place_quietly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch("Things", tmp_path / "new", "things", good, "make them")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == ["new/things/a"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["things"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError("bad\nsum"), OSError("no route"), EOFError("cut")]
)
def test_a_broken_download_leaves_nothing_and_tells_the_remedy(tmp_path: Path, error: Exception) -> None:
    def broken(folder: str) -> None:
        good(folder)
        raise error

    with pytest.raises(DataError) as raised:
        fetch("Things", tmp_path, "things", broken, "put them there")
    assert list(tmp_path.iterdir()) == []
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in ("Things", str(tmp_path), "put them there", "digits and folder:PATH"))


def test_an_interrupted_download_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(folder: str) -> None:
        good(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("Things", tmp_path, "things", interrupted, "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "mine").write_text("dear")
    with pytest.raises(DataError, match="move it away"):
        fetch("Things", tmp_path, "things", good, "")
    assert [p.name for p in (tmp_path / "things").iterdir()] == ["mine"]


def test_a_root_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot download Things"):
        fetch("Things", tmp_path / "file", "things", good, "")


def test_a_rival_that_finishes_first_is_believed(tmp_path: Path) -> None:
    def beaten(folder: str) -> None:
        good(folder)
        (tmp_path / "things").mkdir()
        (tmp_path / "things" / "a").write_text("the rival's")

    fetch("Things", tmp_path, "things", beaten, "")
    assert (tmp_path / "things" / "a").read_text() == "the rival's"

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpt_bihalf.data import Dataset
from mpt_bihalf.sums import Damaged
from mpt_bihalf.training import Run, train
from mpt_bihalf.training.finished import activation_shares, evaluate_shuffled
from mpt_bihalf.training.recorded_data import DATA, OtherData, check_data, recorded_data

Place = tuple[Run, Path]


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and the time of each file of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_run_records_its_data_in_a_file_and_in_its_checkpoint_and_not_in_its_result(
    trained: Callable[..., Place], small: Dataset
) -> None:
    _, folder = trained(holdout=0.2, width=0.1, epochs=1)
    digest = small.digest.to_json()
    assert json.loads((folder / DATA).read_text()) == digest
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["data"] == digest
    assert recorded_data(folder) == small.digest
    result = json.loads((folder / "result.json").read_text())
    assert all(isinstance(value, int | float) for name, value in result.items() if name != "status")
    assert json.loads((folder / "config.json").read_text())["data_digest"] == ""


@pytest.mark.parametrize("at", [0, 2, 6], ids=["finished", "stopped in its first epoch", "stopped in its second"])
def test_other_data_are_refused_before_anything_is_written(
    at: int,
    trained: Callable[..., Place],
    stopped: Callable[..., Place],
    small: Dataset,
    other: Dataset,
) -> None:
    run, folder = stopped(at, width=0.1) if at else trained(width=0.1)
    before = files_of(folder)
    with pytest.raises(OtherData) as fault:
        train(run, folder, other)
    assert str(fault.value) == (
        f"digits holds other data than {folder} was trained on: test images have other names, sizes or classes; "
        "put those back, or do the run anew in another folder"
    )
    assert files_of(folder) == before
    assert train(run, folder, small)["status"] == "finished"


def test_a_result_or_a_checkpoint_alone_is_enough_to_refuse_other_data(
    trained: Callable[..., Place], other: Dataset
) -> None:
    run, folder = trained(method="mpt-sign", width=0.1, epochs=1)
    for name, content in (("checkpoint.pt", b""), ("checkpoint.pt", None), ("result.json", None)):
        (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()
        if name == "result.json":
            (folder / "checkpoint.pt").write_bytes(b"")
        before = files_of(folder)
        with pytest.raises(OtherData):
            train(run, folder, other)
        with pytest.raises(OtherData):
            evaluate_shuffled(run, folder, lambda: other)
        assert files_of(folder) == before


def test_a_run_that_has_come_to_nothing_may_begin_with_other_data(
    trained: Callable[..., Place], other: Dataset
) -> None:
    run, folder = trained(width=0.1, epochs=1)
    for name in ("result.json", "checkpoint.pt"):
        (folder / name).unlink()
    train(run, folder, other)
    assert recorded_data(folder) == other.digest


def test_a_finished_run_is_not_looked_at_with_other_data(trained: Callable[..., Place], other: Dataset) -> None:
    run, folder = trained(method="mpt-sign", activations="binary", width=0.1, epochs=1)
    before = files_of(folder)
    for told in (True, False):
        if not told:
            (folder / DATA).unlink()
            del before[str(folder / DATA)]
        for look in (evaluate_shuffled, activation_shares):
            with pytest.raises(OtherData, match="test images have other names"):
                look(run, folder, lambda: other)
    assert files_of(folder) == before


def test_the_data_may_lie_elsewhere(trained: Callable[..., Place], small: Dataset) -> None:
    run, folder = trained(width=0.1, epochs=1)
    assert train(replace(run, data_root="/elsewhere"), folder, replace(small, name="moved"))["status"] == "finished"


def test_what_is_recorded_may_be_older_than_digests_or_damaged(tmp_path: Path, small: Dataset) -> None:
    assert recorded_data(tmp_path) is None
    assert recorded_data(tmp_path / "nothing") is None
    (tmp_path / "checkpoint.pt").touch()
    text = json.dumps(small.digest.to_json())
    for place in range(0, len(text), 7):
        (tmp_path / DATA).write_text(text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :])
        with pytest.raises(Damaged, match=f"{tmp_path / DATA} is damaged"):
            recorded_data(tmp_path)
        check_data(tmp_path, Run(), small.digest)  # the checkpoint tells too
    for damaged in ("", "[]", "{}", text[:-1], "[" * 100_000):
        (tmp_path / DATA).write_text(damaged)
        with pytest.raises(Damaged):
            recorded_data(tmp_path)
    (tmp_path / DATA).unlink()
    (tmp_path / DATA).mkdir()
    with pytest.raises(Damaged):
        recorded_data(tmp_path)


def test_a_run_takes_no_other_data_than_its_digest_asks_for(
    tmp_path: Path, small: Dataset, other: Dataset, make_run: Callable[..., Run]
) -> None:
    run = make_run(epochs=1, width=0.1, data_digest=small.digest.sha256)
    with pytest.raises(OtherData) as fault:
        train(run, tmp_path / "run", other)
    assert str(fault.value) == (
        f"digits holds other data than asked for: SHA-256 {other.digest.sha256}, not {small.digest.sha256}"
    )
    assert list(tmp_path.iterdir()) == []
    train(run, tmp_path / "run", small)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data_digest"] == ""
    plain = make_run(epochs=1, width=0.1)
    assert (run.name, run.hash) == (plain.name, plain.hash) and run == plain
    for wrong in ("x", "0" * 63, "A" * 64):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            make_run(data_digest=wrong)

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mpt_bihalf.data import Dataset, load_dataset
from mpt_bihalf.sums import SUMS, sum_of
from mpt_bihalf.sweep import EngineOptions, repair, run_all
from mpt_bihalf.sweep.claim import claimed
from mpt_bihalf.sweep.records import read_records, run_folder
from mpt_bihalf.sweep.repair import damaged_files, is_done
from mpt_bihalf.training import Run, train
from mpt_bihalf.training.checkpoint import CHECKPOINT
from mpt_bihalf.training.finished import activation_shares, evaluate_shuffled
from mpt_bihalf.training.record import ACTIVATIONS, LAYERS, METRICS, RESULT, SHUFFLED, TRACE

SERIAL = EngineOptions(engine="serial")
RUN = Run(
    compute="dense",
    method="mpt-sign",
    width=0.05,
    activations="binary",
    trace=1,
    batch_size=700,
    epochs=2,
    device="cpu",
    threads=1,
)
TABLES, DERIVED = (METRICS, LAYERS, TRACE), (SHUFFLED, ACTIVATIONS)
Damage = Callable[[Path], None]
Told = Callable[[], list[str]]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """An output folder with `RUN` and the same of another seed, finished and looked at."""
    out = tmp_path_factory.mktemp("made")
    for run in (RUN, replace(RUN, seed=1)):
        train(run, run_folder(out, run), digits)
        evaluate_shuffled(run, run_folder(out, run), lambda: digits)
        activation_shares(run, run_folder(out, run), lambda: digits)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def folder(out: Path) -> Path:
    return run_folder(out, RUN)


@pytest.fixture
def whole(made: Path) -> dict[str, bytes]:
    """The files of `RUN` as they should be, beside its checkpoint."""
    return {name: (run_folder(made, RUN) / name).read_bytes() for name in (*TABLES, *DERIVED, RESULT, SUMS)}


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """The lines on standard error since the last call, without the run's name."""
    return lambda: [line.removeprefix(f"{RUN.name}: ") for line in capsys.readouterr().err.splitlines()]


def files_of(folder: Path, names: dict[str, bytes]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    shutil.copy(run_folder(path.parents[2], replace(RUN, seed=1)) / path.name, path)


def nan(path: Path) -> None:
    """NaN in the place of the last number."""
    path.write_text(re.sub(r"[\d.]+(\n?}?\n)$", r"NaN\1", path.read_text()))


def a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGED: list[Damage] = [empty, foreign, nan, a_byte]


def test_a_run_that_is_as_it_was_left_is_done_without_a_word(out: Path, folder: Path, told: Told) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert is_done(RUN, out, [TRACE, LAYERS, SHUFFLED, ACTIVATIONS])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert told() == []


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_made_again_from_the_checkpoint(
    name: str, damage: Damage, needed: bool, out: Path, folder: Path, whole: dict[str, bytes], told: Told
) -> None:
    damage(folder / name)
    assert damaged_files(folder) == [name]
    assert is_done(RUN, out, [name] if needed and name != METRICS else [])
    assert files_of(folder, whole) == whole
    assert told() == [f"{name} was damaged; made again from its checkpoint"]
    assert is_done(RUN, out, [TRACE, LAYERS, SHUFFLED, ACTIVATIONS]) and told() == []


@pytest.mark.parametrize("name", [LAYERS, TRACE])
def test_a_missing_table_that_is_needed_is_made_again(
    name: str, out: Path, folder: Path, whole: dict[str, bytes], told: Told
) -> None:
    delete(folder / name)
    assert is_done(RUN, out) and told() == [] and not (folder / name).exists()
    assert is_done(RUN, out, [name])
    assert files_of(folder, whole) == whole
    assert told() == [f"{name} was missing; made again from its checkpoint"]


def test_a_table_is_not_needed_of_a_run_that_has_none(out: Path, told: Told) -> None:
    run = replace(RUN, trace=0, learn_mask=False, epochs=1)
    train(run, run_folder(out, run), load_dataset("digits"))
    told()
    assert is_done(run, out, [TRACE, SHUFFLED]) and told() == []


@pytest.mark.parametrize("checkpoint", [delete, empty, foreign, a_byte, a_folder])
@pytest.mark.parametrize("damage", [delete, a_byte])
@pytest.mark.parametrize("name", [TRACE, SHUFFLED, ACTIVATIONS])
def test_without_a_checkpoint_a_run_that_lacks_what_is_needed_is_not_done(
    name: str, damage: Damage, checkpoint: Damage, out: Path, folder: Path, told: Told, whole: dict[str, bytes]
) -> None:
    damage(folder / name)
    checkpoint(folder / CHECKPOINT)
    assert not is_done(RUN, out, [name])
    (aside,) = folder.glob(f"put-aside-*/{RESULT}")
    assert aside.read_bytes() == whole[RESULT] and not (folder / RESULT).exists()
    first, second = told()
    assert first.startswith(f"{name} is {'missing' if damage is delete else 'damaged'}, and cannot be made again: ")
    assert second == f"it is done again; its result is kept as {aside}"


@pytest.mark.parametrize("name", [TRACE, SHUFFLED, ACTIVATIONS])
def test_without_a_checkpoint_a_run_is_done_where_what_it_lacks_is_not_needed(
    name: str, out: Path, folder: Path, whole: dict[str, bytes], told: Told
) -> None:
    delete(folder / CHECKPOINT)
    a_byte(folder / name)
    before = files_of(folder, whole)
    others = [other for other in (TRACE, LAYERS, SHUFFLED, ACTIVATIONS) if other != name]
    for needs in ([], others):
        assert is_done(RUN, out, needs)
        assert told() == [
            f"{name} is damaged, and cannot be made again: {folder} has no {CHECKPOINT}",
            f"to do it again, and have its files whole, remove {folder / RESULT}",
        ]
    assert files_of(folder, whole) == before


def test_a_checkpoint_of_an_earlier_epoch_makes_nothing_again(
    out: Path, folder: Path, digits: Dataset, told: Told
) -> None:
    shorter = replace(RUN, epochs=1)
    train(shorter, run_folder(out, shorter), digits)
    content = (run_folder(out, shorter) / CHECKPOINT).read_bytes()
    (folder / CHECKPOINT).write_bytes(content)
    delete(folder / TRACE)
    told()
    assert not is_done(RUN, out, [TRACE])
    assert "belongs to another run" in told()[0]


@pytest.mark.parametrize("name", [TRACE, SHUFFLED])
def test_a_run_that_is_not_done_is_done_again_to_the_same_bytes(
    name: str, out: Path, folder: Path, whole: dict[str, bytes], digits: Dataset, told: Told
) -> None:
    delete(folder / name)
    delete(folder / CHECKPOINT)
    run_all([RUN], out, SERIAL, needs=[name])
    evaluate_shuffled(RUN, folder, lambda: digits)
    activation_shares(RUN, folder, lambda: digits)
    assert files_of(folder, whole) == whole
    assert any("is missing, and cannot be made again" in line for line in told())


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [*((RESULT, damage, RESULT) for damage in DAMAGED), (SUMS, empty, SUMS), (SUMS, foreign, RESULT)],
)
def test_with_a_damaged_result_or_list_a_run_is_done_again(
    name: str, damage: Damage, said: str, out: Path, folder: Path, whole: dict[str, bytes], told: Told
) -> None:
    damage(folder / name)
    assert not is_done(RUN, out)
    assert f"{said} is damaged" in told()
    run_all([RUN], out, SERIAL)
    assert damaged_files(folder) == []
    decided = {each: whole[each] for each in (*TABLES, RESULT)}
    assert files_of(folder, decided) == decided
    told()
    assert is_done(RUN, out) and told() == []


@pytest.mark.parametrize("name", [*TABLES, *DERIVED])
def test_a_changed_sum_of_a_file_makes_that_file_again(
    name: str, out: Path, folder: Path, whole: dict[str, bytes], digits: Dataset
) -> None:
    lines = whole[SUMS].decode().splitlines(keepends=True)
    (line,) = [line for line in lines if name in line]
    changed = ("1" if line[0] == "0" else "0") + line[1:]
    (folder / SUMS).write_text("".join(changed if each == line else each for each in lines))
    assert damaged_files(folder) == [name]
    assert is_done(RUN, out)
    evaluate_shuffled(RUN, folder, lambda: digits)
    activation_shares(RUN, folder, lambda: digits)
    assert files_of(folder, whole) == whole


@pytest.mark.parametrize("damage", [delete, *DAMAGED])
@pytest.mark.parametrize("name", DERIVED)
def test_what_is_worked_out_of_a_checkpoint_is_worked_out_again(
    name: str, damage: Damage, out: Path, folder: Path, whole: dict[str, bytes], digits: Dataset, told: Told
) -> None:
    damage(folder / name)
    assert is_done(RUN, out, [name])
    fault = "missing" if damage is delete else "damaged"
    assert told() == [f"{name} was {fault}; its checkpoint is there to make it again"]
    look = evaluate_shuffled if name == SHUFFLED else activation_shares
    look(RUN, folder, lambda: digits)
    assert files_of(folder, whole) == whole


@pytest.mark.parametrize("damage", [empty, nan])
@pytest.mark.parametrize("name", [LAYERS, TRACE, *DERIVED])
def test_a_record_of_a_time_before_the_list_is_done_and_what_is_no_table_of_it_is_noticed(
    name: str, damage: Damage, out: Path, folder: Path, whole: dict[str, bytes], digits: Dataset, told: Told
) -> None:
    delete(folder / SUMS)
    assert is_done(RUN, out, [TRACE, LAYERS, SHUFFLED, ACTIVATIONS]) and told() == []
    assert not (folder / SUMS).exists() and len(read_records(out, [RUN])) == 1
    damage(folder / name)
    assert is_done(RUN, out, [name]) and f"{name} was damaged" in told()[0]
    evaluate_shuffled(RUN, folder, lambda: digits)
    activation_shares(RUN, folder, lambda: digits)
    assert files_of(folder, whole) == whole  # and now it has the list


def test_what_a_diverged_run_left_is_made_again_too(out: Path, digits: Dataset, told: Told) -> None:
    run = replace(RUN, method="sign", activations="real", lr=1e38, weight_decay=10.0, epochs=2)
    folder = run_folder(out, run)
    assert train(run, folder, digits)["status"].startswith("diverged")
    told()
    assert is_done(run, out, [TRACE, LAYERS]) and told() == []
    a_byte(folder / RESULT)
    assert not is_done(run, out)


def test_a_result_that_somebody_redoes_is_not_put_aside(out: Path, folder: Path, told: Told) -> None:
    delete(folder / CHECKPOINT)
    delete(folder / TRACE)
    with claimed(folder):
        assert not is_done(RUN, out, [TRACE])
    assert (folder / RESULT).exists() and not list(folder.glob("put-aside-*"))
    assert len(told()) == 1


def test_a_result_that_somebody_has_just_redone_is_not_put_aside(
    out: Path, folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    @contextmanager
    def late(folder: Path) -> Iterator[bool]:
        (folder / TRACE).write_bytes(whole[TRACE])
        with claimed(folder) as ours:
            yield ours

    delete(folder / CHECKPOINT)
    delete(folder / TRACE)
    monkeypatch.setattr(repair, "claimed", late)
    is_done(RUN, out, [TRACE])
    assert (folder / RESULT).exists() and not list(folder.glob("put-aside-*"))


@pytest.mark.parametrize("checkpoint", [True, False])
def test_nothing_is_written_where_a_link_leads(
    checkpoint: bool, out: Path, folder: Path, tmp_path: Path, told: Told
) -> None:
    elsewhere = Path(shutil.move(folder, tmp_path / "elsewhere"))
    folder.symlink_to(elsewhere)
    delete(elsewhere / TRACE)
    if not checkpoint:
        delete(elsewhere / CHECKPOINT)
    before = {path: path.lstat().st_mtime_ns for path in (elsewhere, *elsewhere.rglob("*"))}
    assert not is_done(RUN, out, [TRACE])
    assert {path: path.lstat().st_mtime_ns for path in (elsewhere, *elsewhere.rglob("*"))} == before
    assert "is a link" in told()[0]


def test_a_folder_that_cannot_be_written_to_is_told(
    out: Path, folder: Path, told: Told, as_nobody: Callable[[], None]
) -> None:
    delete(folder / TRACE)
    out.chmod(0o755)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = os.listdir(folder)
    as_nobody()
    assert not is_done(RUN, out, [TRACE])
    assert "cannot be made again: [Errno 13] Permission denied" in told()[0]
    assert os.listdir(folder) == before


def test_the_list_tells_of_every_file_that_decides(folder: Path) -> None:
    listed = dict(line.split("  ")[::-1] for line in (folder / SUMS).read_text().splitlines())
    assert listed == {name: sum_of((folder / name).read_bytes()) for name in (*TABLES, RESULT, *DERIVED)}
    assert json.loads((folder / RESULT).read_text())["status"] == "finished"


@pytest.mark.parametrize("text", ["", "{", "null", "another's"])
def test_a_damaged_configuration_is_written_again(text: str, out: Path, told: Told) -> None:
    config = run_folder(out, RUN) / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"seed": 0', '"seed": 1') if text == "another's" else text)
    assert is_done(RUN, out)
    assert config.read_text() == whole
    assert told() == ["config.json was damaged; written again"]

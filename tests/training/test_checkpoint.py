from __future__ import annotations

import hashlib
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mpt_bihalf.data import Dataset, ImageSet
from mpt_bihalf.signals import Stopped
from mpt_bihalf.training import Run, checkpoint, train
from mpt_bihalf.training.build import build_model, build_optimizer
from mpt_bihalf.training.checkpoint import (
    CHECKPOINT,
    COMMENT_SIZE,
    State,
    load_checkpoint,
    read_history,
    save_checkpoint,
)
from mpt_bihalf.training.recorded_data import DATA, OtherData
from tests.told import Each, Told

ENDS = ("result.json", "metrics.csv", "layers.csv", "trace.csv", "config.json")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not a checkpoint\n" * 100)


def another_pickle(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def no_dictionary(path: Path) -> None:
    torch.save([1, 2, 3], path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "kept").write_text("x")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_nothing_ending(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def flipped_in_a_tensor(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content[largest.header_offset + 1000 + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch does not notice


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = [(part.filename, archive.read(part)) for part in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts:
            archive.writestr(name, content)


def legacy(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)


def a_row_in_two_places(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["history"]["trace"].append(content["history"]["trace"][-1])
    torch.save(content, path)


FILES = [cut, empty, text, another_pickle, no_dictionary, a_folder, a_pipe, a_link_to_nothing_ending]
FILES += [flipped_in_a_tensor, compressed, legacy, a_row_in_two_places]

Place = tuple[Any, ...]
NAN, INF = float("nan"), float("inf")
WEIGHT, MOMENT, LAYER = ("model", "6.bias"), ("optimizer", "state", 0, "exp_avg"), ("history", "layers", 3)
EPOCH, TRACE = ("history", "epochs", 0), ("history", "trace", 2)
BAD_VALUES: list[tuple[Place, Any]] = [
    (("run", "seed"), 1),
    (("note",), 1),
    (("run", "seed"), "0"),
    (("run",), None),
    (("model",), {}),
    (WEIGHT, torch.zeros(2)),
    (WEIGHT, torch.zeros(128, dtype=torch.float64)),
    (WEIGHT, torch.full((128,), NAN)),
    (WEIGHT, torch.zeros(128, device="meta")),
    (WEIGHT, torch.zeros(128).to_sparse()),
    (WEIGHT, [0.0] * 128),
    (("optimizer",), None),
    (("optimizer",), {"state": {}, "param_groups": []}),
    (("optimizer", "state"), {}),
    (("optimizer", "state", 0), {}),
    (("optimizer", "state", 0, "more"), torch.zeros(3)),
    (MOMENT, torch.zeros(2)),
    (MOMENT, torch.zeros(64, 1, 3, 3, dtype=torch.float64)),
    (MOMENT, torch.full((64, 1, 3, 3), NAN)),
    (MOMENT, torch.full((64, 1, 3, 3), INF)),
    (MOMENT, "x"),
    (("optimizer", "state", 0, "step"), torch.tensor(-1.0)),
    (("optimizer", "state", 0, "step"), torch.tensor(NAN)),
    (("optimizer", "state", 0, "step"), 6.0),
    (("history",), [1, 2]),
    (("history", "epochs"), []),
    (EPOCH, [1, 2]),
    ((*EPOCH, "epoch"), 2),
    ((*EPOCH, "test_top1"), "12"),
    ((*EPOCH, "test_top1"), NAN),
    ((*EPOCH, "test_top1"), True),
    ((*EPOCH, "test_top1"), torch.zeros(3)),
    ((*EPOCH, "more"), 1.0),
    ((*LAYER, "layer"), "7"),
    ((*LAYER, "layer"), "../../x"),
    ((*LAYER, "epoch"), 2),
    ((*LAYER, "entropy"), None),
    (("history", "layers"), []),
    (("history", "trace"), [{"a": 1}]),
    ((*TRACE, "step"), "1"),
    ((*TRACE, "layer"), "7"),
    ((*TRACE, "layer"), ["0"]),
    (("step",), 0),
    (("step",), -1),
    (("step",), 3),
    (("step",), 5),
    (("step",), "2"),
    (("step",), 2.0),
    (("under_way",), None),
    (("under_way", "totals"), torch.zeros(4)),
    (("under_way", "totals"), 1.0),
    (("under_way", "signs"), {}),
    (("under_way", "signs", "0"), torch.zeros(64, 1, 3, 3)),
    (("under_way", "flips"), torch.zeros(5, 4)),
    (("under_way", "seen"), []),
    (("under_way", "seen", 0), torch.zeros(3)),
]


def edit(path: Path, place: Place, value: Any) -> None:
    """Put a value into the nested content of a checkpoint."""
    state = torch.load(path, weights_only=True)
    inner = state
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    torch.save(state, path)


def told(place: Place, value: Any) -> str:
    return f"{'.'.join(map(str, place))}={type(value).__name__ if isinstance(value, Tensor | dict) else value}"[:60]


@pytest.fixture(scope="session")
def halfway(tmp_path_factory: pytest.TempPathFactory, small: Dataset) -> tuple[Run, Path, dict[str, bytes]]:
    """A run that was stopped after two of the four steps of its second epoch: what it had then, what it ends with."""
    run = Run(
        compute="dense",
        batch_size=64,
        epochs=2,
        threads=1,
        device="cpu",
        method="bihalf",
        optimizer="adam",
        lr=0.01,
        trace=1,
    )
    folder = tmp_path_factory.mktemp("halfway")

    def tell(progress: Told) -> None:
        if progress.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(run, folder, small, [Each(tell)])
    whole = tmp_path_factory.mktemp("whole")
    train(run, whole, small)
    return run, folder, {name: (whole / name).read_bytes() for name in ENDS}


@pytest.fixture
def begun(halfway: tuple[Run, Path, dict[str, bytes]], tmp_path: Path) -> tuple[Run, Path]:
    run, folder, _ = halfway
    return run, Path(shutil.copytree(folder, tmp_path / "run"))


def load(folder: Path, run: Run, dataset: Dataset) -> State | None:
    model = build_model(run, dataset)
    return load_checkpoint(folder, run, model, build_optimizer(run, model), 4, data=dataset.digest)


def starts_over(run: Run, folder: Path, dataset: Dataset) -> bool:
    """Go on with a run to its end; whether it began with its first step."""
    steps: list[int] = []
    train(run, folder, dataset, [Each(lambda progress: steps.append(progress.step))])
    return steps[0] == 1


def test_there_is_nothing_to_load_in_an_empty_folder(tmp_path: Path, small: Dataset, make_run: Callable) -> None:
    assert load(tmp_path, make_run(), small) is None


def test_what_is_saved_comes_back_as_it_was(begun: tuple[Run, Path], small: Dataset, tmp_path: Path) -> None:
    run, folder = begun
    state = load(folder, run, small)
    assert (state.epoch, state.step, len(state.trace.seen), len(state.history["trace"])) == (1, 2, 10, 20)
    save_checkpoint(tmp_path, run, state)
    first, again = (torch.load(place / CHECKPOINT, weights_only=True) for place in (folder, tmp_path))
    for content in (first, again):
        del content["optimizer"]["param_groups"]  # the run's own
    assert plain(first) == plain(again)


def plain(value: Any) -> Any:
    """Nested values with bytes in the place of tensors."""
    if isinstance(value, Tensor):
        return value.numpy().tobytes(), value.dtype, value.shape
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("damage", FILES)
def test_a_file_that_is_no_checkpoint_is_put_aside_and_the_run_starts_over(
    damage: Callable[[Path], None],
    begun: tuple[Run, Path],
    halfway: tuple[Run, Path, dict[str, bytes]],
    small: Dataset,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, folder = begun
    damage(folder / CHECKPOINT)
    with pytest.raises(ValueError) as error:
        load(folder, run, small)
    assert str(folder / CHECKPOINT) in str(error.value) and "\n" not in str(error.value)
    assert starts_over(run, folder, small)
    assert {name: (folder / name).read_bytes() for name in ENDS} == halfway[2]
    (aside,) = folder.glob(f"unusable-*/{CHECKPOINT}")
    assert f"it is kept as {aside}, and the run starts over" in capsys.readouterr().err


@pytest.mark.parametrize(("place", "value"), BAD_VALUES, ids=[told(*bad) for bad in BAD_VALUES])
def test_a_whole_file_with_a_value_that_no_run_writes_is_none_either(
    place: Place, value: Any, begun: tuple[Run, Path], small: Dataset
) -> None:
    run, folder = begun
    edit(folder / CHECKPOINT, place, value)
    with pytest.raises(ValueError, match="is no checkpoint to go on from"):
        load(folder, run, small)


@pytest.mark.parametrize(
    ("place", "value"),
    [(("lr",), "x"), (("betas",), (5.0, 5.0)), (("weight_decay",), 3.0), (("params",), [7]), (("amsgrad",), True)],
)
def test_of_an_optimizer_only_the_tensors_are_taken(
    place: Place, value: Any, begun: tuple[Run, Path], halfway: tuple[Run, Path, dict[str, bytes]], small: Dataset
) -> None:
    run, folder = begun
    edit(folder / CHECKPOINT, ("optimizer", "param_groups", 0, *place), value)
    assert not starts_over(run, folder, small)
    assert {name: (folder / name).read_bytes() for name in ENDS} == halfway[2]


def test_tensors_that_share_memory_are_taken_apart(
    begun: tuple[Run, Path], halfway: tuple[Run, Path, dict[str, bytes]], small: Dataset
) -> None:
    run, folder = begun
    edit(folder / CHECKPOINT, MOMENT, torch.zeros(1).expand(64, 1, 3, 3))  # such a one cannot be written to
    assert not starts_over(run, folder, small)


def test_a_checkpoint_of_another_run_is_refused(begun: tuple[Run, Path], small: Dataset) -> None:
    run, folder = begun
    with pytest.raises(ValueError, match="another run"):
        load(folder, replace(run, seed=2), small)


def test_a_checkpoint_moved_with_its_data_is_still_the_runs(begun: tuple[Run, Path], small: Dataset) -> None:
    run, folder = begun
    assert load(folder, replace(run, data_root="/there"), small) is not None


def test_a_checkpoint_that_cannot_be_read_is_not_thrown_away(begun: tuple[Run, Path], small: Dataset) -> None:
    run, folder = begun

    def fail(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(PermissionError):
            train(run, folder, small)
    assert not starts_over(run, folder, small)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, small: Dataset, make_run: Callable[..., Run]) -> None:
    trap = tmp_path / "sprung"
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"run": Trap(trap), "model": {}, "optimizer": None, "history": {}}, folder / CHECKPOINT)
    result = train(make_run(epochs=1), folder, small)
    assert not trap.exists()
    assert result["status"] == "finished"
    (aside,) = folder.glob(f"unusable-*/{CHECKPOINT}")
    torch.load(aside, weights_only=False)  # the trap does spring for a careless reader
    assert trap.exists()


def test_damaged_twice_is_put_aside_twice(trained: Callable[..., tuple[Run, Path]], small: Dataset) -> None:
    run, folder = trained(epochs=1)
    before = (folder / "result.json").read_bytes()
    for damage in (a_folder, text, a_folder):
        damage(folder / CHECKPOINT)
        train(run, folder, small)
        assert (folder / "result.json").read_bytes() == before
    assert len(list(folder.glob("unusable-*"))) == 3


def test_what_a_killed_writer_left_is_removed_when_the_run_goes_on(begun: tuple[Run, Path], small: Dataset) -> None:
    run, folder = begun
    for name in (".checkpoint.pt.0123456789ab", ".metrics.csv.0123456789ab", ".result.json.0123456789ab"):
        (folder / name).write_text("half a fi")
    (folder / ".claim.json.0123456789ab").write_text("somebody else's")
    train(run, folder, small)
    assert [path.name for path in folder.glob(".*")] == [".claim.json.0123456789ab"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("scaler",), None),
        (("scaler",), {"scale": 1.0}),
        (("scaler", "scale"), -1.0),
        (("scaler", "scale"), float("inf")),
        (("scaler", "scale"), "x"),
        (("scaler", "_growth_tracker"), 0.5),
        (("scaler", "_growth_tracker"), -1),
        (("optimizer", "state", 0, "step"), torch.tensor(7.0)),
        (("optimizer", "state", 0, "step"), torch.tensor(1.5)),
    ],
)
def test_the_loss_scaler_is_part_of_a_checkpoint_and_checked_like_the_rest(
    place: Place, value: Any, stopped: Callable[..., tuple[Run, Path]], small: Dataset
) -> None:
    run, folder = stopped(6, method="bihalf", precision="fp16", optimizer="adam", lr=0.01)
    state = load(folder, run, small)
    assert state is not None
    assert state.scaler.state_dict() == torch.load(folder / CHECKPOINT)["scaler"]
    edit(folder / CHECKPOINT, place, value)
    with pytest.raises(ValueError, match="is no checkpoint to go on from"):
        load(folder, run, small)


def test_settings_of_a_loss_scaler_stay_the_runs_own(stopped: Callable[..., tuple[Run, Path]], small: Dataset) -> None:
    run, folder = stopped(6, method="bihalf", precision="fp16")
    edit(folder / CHECKPOINT, ("scaler", "growth_factor"), 3.0)
    edit(folder / CHECKPOINT, ("scaler", "scale"), 2.0)
    state = load(folder, run, small)
    assert state is not None
    assert (state.scaler.get_growth_factor(), state.scaler.get_scale()) == (2.0, 2.0)


def test_no_more_rows_of_layers_are_looked_for_than_there_are(
    begun: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = begun
    history = torch.load(folder / CHECKPOINT, weights_only=True)["history"]
    epoch, layer = history["epochs"][0], history["layers"][0]
    edit(folder / CHECKPOINT, ("history", "epochs"), [{**epoch, "epoch": number} for number in range(1, 101)])
    edit(folder / CHECKPOINT, ("history", "layers"), [{**layer, "layer": f"{number}"} for number in range(100)])
    monkeypatch.setattr(checkpoint, "product", lambda *_: pytest.fail("each of the layers in each of the epochs"))
    with pytest.raises(ValueError, match="is no checkpoint to go on from"):
        read_history(folder, run)


def refused(folder: Path, run: Run, content: bytes) -> bool:
    """Whether this, in the place of the checkpoint, is no checkpoint; it is seen before the network is asked for."""
    (folder / CHECKPOINT).write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint to go on from"):
        read_history(folder, run)
    return True


@pytest.fixture
def tiny(tmp_path: Path, small: Dataset) -> tuple[Run, Path]:
    """A finished run whose checkpoint has few bytes."""
    run = Run(method="mpt-sign", compute="dense", width=0.05, batch_size=150, epochs=1, threads=1, device="cpu")
    train(run, tmp_path / "tiny", small)
    return run, tmp_path / "tiny"


def test_no_byte_of_a_checkpoint_can_change_unnoticed(tiny: tuple[Run, Path]) -> None:
    run, folder = tiny
    whole = (folder / CHECKPOINT).read_bytes()
    end = len(whole) - COMMENT_SIZE - 22  # the archive's last record and the sum after it
    for number, place in enumerate([*range(0, end, end // 150), *range(end, len(whole))]):
        changed = bytearray(whole)
        changed[place] ^= 1 << number % 8
        assert refused(folder, run, bytes(changed)), place


def test_no_checkpoint_can_be_cut_or_lengthened_unnoticed(tiny: tuple[Run, Path]) -> None:
    run, folder = tiny
    whole = (folder / CHECKPOINT).read_bytes()
    for size in (1, 21, 22, 72, 1000, len(whole) // 2, *range(len(whole) - COMMENT_SIZE - 25, len(whole))):
        assert refused(folder, run, whole[:size]), size
    assert refused(folder, run, whole + b"\0")
    assert refused(folder, run, b"\0" + whole)


def test_other_programs_read_a_checkpoint_and_its_sum_is_that_of_all_before_it(begun: tuple[Run, Path]) -> None:
    _, folder = begun
    content = (folder / CHECKPOINT).read_bytes()
    with zipfile.ZipFile(folder / CHECKPOINT) as archive:
        assert archive.testzip() is None
        assert archive.comment == b"SHA-256 " + hashlib.sha256(content[:-72]).hexdigest().encode()
    for mapped in (False, True):
        assert torch.load(folder / CHECKPOINT, weights_only=True, mmap=mapped)["step"] == 2


def test_a_checkpoint_of_a_time_before_the_sum_and_the_digest_goes_on(
    begun: tuple[Run, Path], halfway: tuple[Run, Path, dict[str, bytes]], small: Dataset
) -> None:
    run, folder = begun
    content = torch.load(folder / CHECKPOINT, weights_only=True)
    del content["data"]
    torch.save(content, folder / CHECKPOINT)
    (folder / DATA).unlink()
    assert not starts_over(run, folder, small)
    assert {name: (folder / name).read_bytes() for name in ENDS} == halfway[2]
    assert torch.load(folder / CHECKPOINT, weights_only=True)["data"] is None  # of its first epoch nobody knows
    assert not (folder / DATA).exists()


def test_the_history_is_read_without_the_network(begun: tuple[Run, Path], small: Dataset, tmp_path: Path) -> None:
    run, folder = begun
    history, data = read_history(folder, run)
    assert data == small.digest
    assert history == torch.load(folder / CHECKPOINT, weights_only=True)["history"]
    assert {kind: len(rows) for kind, rows in history.items()} == {"epochs": 1, "layers": 5, "trace": 20}
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no {CHECKPOINT}"):
        read_history(tmp_path, run)
    with pytest.raises(ValueError, match="another run"):
        read_history(folder, replace(run, seed=2))
    edit(folder / CHECKPOINT, (*EPOCH, "test_top1"), NAN)
    with pytest.raises(ValueError, match="is no checkpoint to go on from"):
        read_history(folder, run)


@pytest.mark.parametrize("told", [True, False], ids=["told by data.json too", "told by the checkpoint alone"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: replace(data, train=turned(data.train)), "training images have other names, sizes or classes"),
        (lambda data: replace(data, classes=(*data.classes, "ten")), "class 'ten' is new"),
        (lambda data: replace(data, test=data.test.take(torch.arange(122))), "there are 122 test images, not 123"),
    ],
    ids=["labels", "classes", "images"],
)
def test_other_data_are_refused_and_the_checkpoint_stays(
    change: Callable[[Dataset], Dataset], said: str, told: bool, begun: tuple[Run, Path], small: Dataset
) -> None:
    run, folder = begun
    if not told:
        (folder / DATA).unlink()
    other, before = change(small), files_of(folder)
    if not told:
        with pytest.raises(OtherData, match=said):
            load(folder, run, other)
    with pytest.raises(OtherData) as fault:
        train(run, folder, other)
    assert said in str(fault.value) and "\n" not in str(fault.value)
    assert files_of(folder) == before


def turned(images: Any) -> ImageSet:
    """The same images with the labels of their neighbours."""
    return ImageSet(images.images, images.labels.roll(1))


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and the time of each file of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

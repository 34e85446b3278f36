from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpt_bihalf.data import Dataset
from mpt_bihalf.training import Run, train
from mpt_bihalf.training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from mpt_bihalf.training.loop import build_model, build_optimizer

HISTORY = {
    "epochs": [{"epoch": 1, "test_top1": 12.5}],
    "layers": [{"epoch": 1, "layer": "0", "flips": 3.0}],
    "trace": [],
}


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


def other_layers(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["model"] = {f"net.{name}": value for name, value in state["model"].items()}
    torch.save(state, path)


def other_shapes(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["model"] = {name: torch.zeros(2) for name in state["model"]}
    torch.save(state, path)


def other_optimizer(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["optimizer"] = {"state": {}, "param_groups": []}
    torch.save(state, path)


def other_history(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, "history": [1, 2]}, path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "kept").write_text("x")


DAMAGES = [cut, empty, text, another_pickle, no_dictionary, other_layers, other_shapes, other_optimizer, other_history]


@pytest.fixture
def state(small: Dataset, make_run: Callable[..., Run]) -> Callable[..., Any]:
    def make(**fields: object) -> Any:
        run = make_run(**fields)
        model = build_model(run, small)
        return run, model, build_optimizer(run, model)

    return make


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["bihalf", "mpt-bihalf"])
def test_model_optimizer_and_history_come_back_as_they_were(
    tmp_path: Path, state: Callable[..., Any], method: str, optimizer: str
) -> None:
    run, model, moving = state(method=method, optimizer=optimizer)
    for _ in range(2):
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        moving.step()
    save_checkpoint(tmp_path, run, model, moving, HISTORY)
    _, fresh, fresh_optimizer = state(method=method, optimizer=optimizer)
    assert load_checkpoint(tmp_path, run, fresh, fresh_optimizer) == HISTORY
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    moments, again = moving.state_dict()["state"], fresh_optimizer.state_dict()["state"]
    assert moments.keys() == again.keys() != set()
    for index, values in moments.items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(again[index][name]), torch.as_tensor(value)), (index, name)


def test_there_is_nothing_to_load_in_an_empty_folder(tmp_path: Path, state: Callable[..., Any]) -> None:
    run, model, optimizer = state()
    assert load_checkpoint(tmp_path, run, model, optimizer) is None


@pytest.mark.parametrize("damage", [*DAMAGES, a_folder])
def test_a_file_that_is_no_checkpoint_of_the_run_is_told_by_its_path(
    tmp_path: Path, state: Callable[..., Any], damage: Callable[[Path], None]
) -> None:
    run, model, optimizer = state()
    save_checkpoint(tmp_path, run, model, optimizer, HISTORY)
    damage(tmp_path / CHECKPOINT)
    with pytest.raises(ValueError) as error:
        load_checkpoint(tmp_path, run, model, optimizer)
    assert str(tmp_path / CHECKPOINT) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, state: Callable[..., Any]) -> None:
    run, model, optimizer = state(seed=1)
    save_checkpoint(tmp_path, run, model, optimizer, HISTORY)
    other, model, optimizer = state(seed=2)
    with pytest.raises(ValueError, match="another run"):
        load_checkpoint(tmp_path, other, model, optimizer)


def test_a_checkpoint_moved_with_its_data_is_still_the_runs(tmp_path: Path, state: Callable[..., Any]) -> None:
    run, model, optimizer = state(data_root="/here")
    save_checkpoint(tmp_path, run, model, optimizer, HISTORY)
    moved, model, optimizer = state(data_root="/there")
    assert load_checkpoint(tmp_path, moved, model, optimizer) == HISTORY


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, small: Dataset, make_run: Callable[..., Run]) -> None:
    trap = tmp_path / "sprung"
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"run": Trap(trap), "model": {}, "optimizer": None, "history": {}}, folder / CHECKPOINT)
    result = train(make_run(epochs=1), folder, small, progress=False)
    assert not trap.exists()
    assert result["status"] == "finished"
    (aside,) = folder.glob(f"unusable-*/{CHECKPOINT}")
    torch.load(aside, weights_only=False)  # the trap does spring for a careless reader
    assert trap.exists()


@pytest.mark.parametrize("damage", [*DAMAGES, a_folder])
def test_a_run_with_a_damaged_checkpoint_puts_it_aside_and_starts_over(
    trained: Callable[..., tuple[Run, Path]], small: Dataset, damage: Callable[[Path], None]
) -> None:
    run, folder = trained(epochs=1)
    before = {name: (folder / name).read_bytes() for name in ("result.json", "metrics.csv", "layers.csv")}
    (folder / "result.json").unlink()
    damage(folder / CHECKPOINT)
    train(run, folder, small, progress=False)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert len(list(folder.glob(f"unusable-*/{CHECKPOINT}"))) == 1


def test_damaged_twice_is_put_aside_twice(trained: Callable[..., tuple[Run, Path]], small: Dataset) -> None:
    run, folder = trained(epochs=1)
    before = (folder / "result.json").read_bytes()
    for damage in (a_folder, text, a_folder):
        damage(folder / CHECKPOINT)
        train(run, folder, small, progress=False)
        assert (folder / "result.json").read_bytes() == before

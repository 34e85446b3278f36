from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mpt_bihalf.data import Dataset, evaluation_batches
from mpt_bihalf.sums import SUMS
from mpt_bihalf.training import Run, train
from mpt_bihalf.training.build import build_model
from mpt_bihalf.training.finished import evaluate_shuffled
from mpt_bihalf.training.step import evaluate

Trained = Callable[..., tuple[Run, Path]]


def test_shuffled_masks_lose_what_was_learned_and_the_run_stays_as_it_is(trained: Trained, small: Dataset) -> None:
    run, folder = trained(method="mpt-sign", epochs=4, lr=0.1)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != SUMS}
    figures = evaluate_shuffled(run, folder, lambda: small)
    learned = json.loads((folder / "result.json").read_text())
    assert set(figures) == {"test_loss", "test_top1", "test_top5"}
    assert figures["test_top1"] < learned["test_top1"] - 20
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_the_figures_are_kept_and_a_damaged_file_is_made_anew(trained: Trained, small: Dataset) -> None:
    run, folder = trained(method="mpt-balanced", epochs=1)
    figures = evaluate_shuffled(run, folder, lambda: small)
    file = folder / "shuffled.json"
    assert json.loads(file.read_text()) == figures
    for damaged in ("", "{", "[]", '{"test_loss": 1.0}', '{"test_top1": "x"}'):
        file.write_text(damaged)
        assert evaluate_shuffled(run, folder, lambda: small) == figures
    (folder / "checkpoint.pt").unlink()
    assert evaluate_shuffled(run, folder, lambda: pytest.fail("loaded")) == figures  # no need of either any more


def test_a_run_without_a_checkpoint_is_an_error(tmp_path: Path, small: Dataset, make_run: Callable[..., Run]) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        evaluate_shuffled(make_run(), tmp_path, lambda: small)


@pytest.mark.parametrize("method", ["mpt-sign", "mpt-bihalf", "mpt-balanced"])
def test_a_run_whose_mask_never_learns_is_the_network_it_began_with(
    method: str, tmp_path: Path, small: Dataset, make_run: Callable[..., Run]
) -> None:
    run = make_run(method=method, learn_mask=False, epochs=2)
    result = train(run, tmp_path, small)
    begun, _ = evaluate(build_model(run, small), evaluation_batches(small.test, small, 500), "test", run.precision)
    assert {name: result[name] for name in begun} == pytest.approx(begun, rel=1e-6)
    assert result["epochs"] == 2 and train(run, tmp_path, small) == result

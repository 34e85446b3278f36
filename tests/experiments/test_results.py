from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpt_bihalf.experiments import Results, results
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run
from mpt_bihalf.training.step import FIGURES

FINISHED = Run(method="sign", epochs=2, device="cpu", threads=1).resolved()
DIVERGED = Run(method="bihalf", epochs=2, device="cpu", threads=1).resolved()


@pytest.fixture
def left(tmp_path: Path) -> Results:
    """What a finished run, a diverged one and one that was never done have left."""
    figures = {"status": "finished", "epochs": 2, **dict.fromkeys(FIGURES, 50.0)}
    for run, result in ((FINISHED, figures), (DIVERGED, {"status": "diverged: NaN in layer '0' in epoch 1"})):
        run_folder(tmp_path, run).mkdir(parents=True)
        (run_folder(tmp_path, run) / "result.json").write_text(json.dumps(result))
    return Results(tmp_path, [FINISHED, DIVERGED, Run(method="irnet", device="cpu", threads=1).resolved()])


def test_each_is_read_when_it_is_asked_for_and_once(left: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("read_records", "read_trace", "read_layers", "load_run_data"):
        monkeypatch.setattr(results, name, lambda *given, name=name: [name])
    for name, by in (("records", "read_records"), ("trace", "read_trace"), ("layers", "read_layers")):
        assert getattr(left, name) == [by]
        assert getattr(left, name) is getattr(left, name)
    assert left.data is left.data


def test_finished_runs_are_those_that_did_not_diverge(left: Results) -> None:
    assert [record["method"] for record in left.records] == ["sign", "bihalf"]
    assert left.finished == [FINISHED]


def test_runs_are_looked_at_again_in_their_folders_and_data_loaded_only_where_needed(
    left: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "load_run_data", lambda run: pytest.fail("nobody asked"))
    found = left.look_again(lambda run, folder, load: folder, left.finished, "folders")
    assert found == {FINISHED.name: run_folder(left.out, FINISHED)}
    monkeypatch.setattr(results, "load_run_data", lambda run: run.data)
    assert left.look_again(lambda run, folder, load: load(), left.finished, "data") == {FINISHED.name: FINISHED.data}

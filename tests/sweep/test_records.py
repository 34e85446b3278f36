from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from mpt_bihalf.sweep import find_runs, read_layers, read_records, write_results
from mpt_bihalf.sweep.records import read_result, run_folder
from mpt_bihalf.training import Run

RUN = Run(epochs=3)
RESULT = {
    "status": "finished",
    "epochs": 3,
    **dict.fromkeys(("train_loss", "train_top1", "train_top5", "test_loss", "test_top5"), 1.5),
    "test_top1": 81.25,
    "best_epoch": 2,
    "best_epoch_test_top1": 90.0,
}


@pytest.fixture
def leave(tmp_path: Path) -> Callable[[Run, str], None]:
    def do(run: Run, text: str) -> None:
        run_folder(tmp_path, run).mkdir(parents=True)
        (run_folder(tmp_path, run) / "result.json").write_text(text)

    return do


def test_a_record_is_a_runs_configuration_and_its_result(tmp_path: Path, leave: Callable[[Run, str], None]) -> None:
    run = Run(skip=("first", "last"), seed=4, epochs=3)
    leave(run, json.dumps(RESULT))
    (record,) = read_records(tmp_path, [run])
    assert list(record) == ["run", *(field.name for field in fields(Run)), "status", *list(RESULT)[2:]]
    assert record["run"] == run.name
    assert (record["skip"], record["seed"], record["epochs"]) == ("first last", 4, 3)
    assert (record["test_top1"], record["best_epoch_test_top1"]) == (81.25, 90.0)


def test_only_finished_runs_have_records_in_the_order_asked_for(
    tmp_path: Path, leave: Callable[[Run, str], None]
) -> None:
    runs = [Run(seed=seed, epochs=3) for seed in (3, 1, 2)]
    leave(runs[0], json.dumps(RESULT))
    leave(runs[2], json.dumps({"status": "diverged: NaN in layer '0' in epoch 1"}))
    assert [record["seed"] for record in read_records(tmp_path, runs)] == [3, 2]
    assert read_records(tmp_path, list(reversed(runs)))[0]["status"].startswith("diverged")


BROKEN = [
    "",
    "{",
    "null",
    "[]",
    "3",
    '"finished"',
    "\ufeff{}",
    "{}",
    '{"epochs": 3}',
    '{"status": 1}',
    '{"status": null}',
]
BROKEN += [
    json.dumps({**RESULT, "test_top1": "high"}),
    json.dumps({**RESULT, "test_loss": float("nan")}),
    json.dumps({**RESULT, "epochs": 2}),
    '{"status": "finished"}',
    '{"status": "finished", "test_top1": "high"}',
    '{"status": "finished", "test_top1": NaN}',
    json.dumps({**RESULT, "test_loss": 10**400}),
    json.dumps({**RESULT, "test_loss": True}),
    json.dumps({**RESULT, "a\x1b[2J": 1.0}),
    json.dumps({**RESULT, **{f"figure{i}": 1.0 for i in range(1000)}}),
    "[" * 100_000,
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_result_counts_as_not_done(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    assert read_result(tmp_path, RUN) is None


def test_a_result_cannot_change_what_the_configuration_says(tmp_path: Path, leave: Callable[[Run, str], None]) -> None:
    leave(RUN, json.dumps({**RESULT, "seed": 7}))
    assert read_records(tmp_path, [RUN])[0]["seed"] == 0


def test_bytes_that_are_no_text_count_as_not_done(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(b"\xff\xfe\x00")
    assert read_result(tmp_path, RUN) is None


def test_a_folder_without_a_result_is_not_done(tmp_path: Path) -> None:
    assert read_result(tmp_path, RUN) is None
    assert read_result(tmp_path / "nothing", RUN) is None


def test_results_csv_has_a_line_a_run(tmp_path: Path, leave: Callable[[Run, str], None]) -> None:
    runs = [Run(seed=1, data="folder:/a, b", epochs=3), Run(seed=2, epochs=3)]
    leave(runs[0], json.dumps(RESULT))
    leave(runs[1], json.dumps({"status": "diverged: NaN in layer '0' in epoch 1"}))
    path = write_results(tmp_path, read_records(tmp_path, runs))
    assert path == tmp_path / "results.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["data"], row["test_top1"]) for row in rows] == [
        ("1", "folder:/a, b", "81.25"),
        ("2", "digits", ""),
    ]
    assert rows[1]["status"].startswith("diverged: ")


def test_runs_are_found_again_in_an_output_folder(tmp_path: Path) -> None:
    runs = [Run(method="sign"), *(Run(prune_rate=rate, seed=seed) for rate in (0.1, 0.5) for seed in (0, 1))]
    assert find_runs(tmp_path) == []
    for run in reversed(runs):
        run_folder(tmp_path, run).mkdir(parents=True)
        (run_folder(tmp_path, run) / "config.json").write_text(json.dumps(asdict(run)))
    assert find_runs(tmp_path) == runs


def test_layer_figures_of_several_runs_stand_in_one_table(tmp_path: Path) -> None:
    runs = [Run(prune_rate=0.3, seed=seed) for seed in (0, 1, 2)]
    for run, entropy in zip(runs[:2], (0.5, 1.0), strict=True):
        run_folder(tmp_path, run).mkdir(parents=True)
        columns = "epoch,layer,weights,entropy,filter_entropy,positive_share,kept,flips_to_positive,flips_to_negative"
        text = f"{columns},mask_change\n1,0,9,{entropy},1,1,1,0,0,0\n1,10,9,0.25,1,1,1,0,0,0\n"
        (run_folder(tmp_path, run) / "layers.csv").write_text(text)
    table = read_layers(tmp_path, runs)
    assert table[["method", "prune_rate", "seed", "layer", "entropy"]].to_numpy().tolist() == [
        ["mpt-bihalf", 0.3, 0, "0", 0.5],
        ["mpt-bihalf", 0.3, 0, "10", 0.25],
        ["mpt-bihalf", 0.3, 1, "0", 1.0],
        ["mpt-bihalf", 0.3, 1, "10", 0.25],
    ]
    assert read_layers(tmp_path, runs[2:]).empty


CONFIG = asdict(Run())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "null", "[" * 100_000, "{}"]
    + [
        json.dumps({**CONFIG, **change})
        for change in (
            {"device": 3},
            {"device": {"a": 1}},
            {"data": 3},
            {"lr": "high"},
            {"lr": True},
            {"lr": 10**400},
            {"lr": float("nan")},
            {"seed": 0.5},
            {"seed": 10**30},
            {"learn_mask": 1},
            {"skip": [[]]},
            {"skip": "first"},
            {"milestones": ["x"]},
            {"prune_rate": [0.5]},
            {"method": []},
        )
    ],
)
def test_a_configuration_that_is_none_makes_no_run_whatever_the_folder_is_called(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / Run().name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    assert find_runs(tmp_path) == []


def test_a_folder_of_another_name_than_its_runs_is_not_believed(tmp_path: Path) -> None:
    for name in (Run().name, Run().name + "x", "." + Run().name, "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text(json.dumps(CONFIG))
    assert find_runs(tmp_path) == [Run()]

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from math import isnan
from pathlib import Path

import pandas as pd
import pytest

from mpt_bihalf.data.digest import DataDigest, Part
from mpt_bihalf.sweep import find_runs, having, noted, read_layers, read_records, read_trace, write_results
from mpt_bihalf.sweep.records import read_result, read_table, run_folder
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
    json.dumps({**RESULT, "note": 1}),
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


def test_a_note_is_a_column_only_where_a_run_has_one(tmp_path: Path, leave: Callable[[Run, str], None]) -> None:
    runs = [Run(seed=seed, epochs=3) for seed in (1, 2)]
    leave(runs[0], json.dumps({**RESULT, "note": "it looks at nothing"}))
    leave(runs[1], json.dumps(RESULT))
    table = pd.read_csv(write_results(tmp_path, read_records(tmp_path, runs)))
    assert table["note"].fillna("").tolist() == ["it looks at nothing", ""]
    run_folder(tmp_path, runs[0]).rename(tmp_path / "elsewhere")
    without = pd.read_csv(write_results(tmp_path, read_records(tmp_path, runs)))
    assert [*without, "note"] == list(table)


def test_a_line_for_each_note_names_the_first_runs_that_have_it() -> None:
    several = [{"run": f"run{number}", "note": "it looks at nothing"} for number in range(7)]
    records = [{"run": "sound"}, *several, {"run": "other", "note": "a\nb"}, {"run": "missing", "note": float("nan")}]
    assert noted(records) == ["it looks at nothing: run0, run1, run2, run3, run4 and 2 more", "a b: other"]


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


# Of a run of three epochs and two steps in each, with two layers. No filter of layer 2 keeps a weight.
EPOCHS, STEPS, NAMES = 3, 2, ("0", "2")
LAYERS_CSV = (
    "epoch,layer,weights,entropy,filter_entropy,positive_share,kept,flips_to_positive,flips_to_negative,mask_change\n"
    + "".join(
        f"{epoch},{name},9,0.5,0.5,{'nan' if name == '2' else 0.5},0.5,1.0,1.0,0.1\n"
        for epoch in range(1, EPOCHS + 1)
        for name in NAMES
    )
)
TRACE_CSV = (
    "step,epoch,layer,weights,connections,filter_entropy,filter_entropy_std,filter_share_lowest,filter_share_highest,"
    "latent_magnitude,cut_off,gradient_magnitude,flips_to_positive,flips_to_negative,first_filter_to_positive,"
    "first_filter_to_negative\n"
    + "".join(
        f"{step},{(step + 1) // STEPS},{name},9,3,0.9,0.1,{share},{share},0.02,{share},0.003,1.0,2.0,3.0,4.0\n"
        for step in range(1, EPOCHS * STEPS + 1)
        for name, share in zip(NAMES, ("0.5", "nan"), strict=True)
    )
)
TABLES = {"layers.csv": LAYERS_CSV, "trace.csv": TRACE_CSV}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_with_nan_only_where_a_filter_can_be_empty(name: str, tmp_path: Path) -> None:
    header, *rows = TABLES[name].splitlines()
    (tmp_path / name).write_text(TABLES[name])
    table = read_table(tmp_path, RUN, name)
    assert list(table) == header.split(",") and len(table) == len(rows)
    assert list(table["layer"]) == ["0", "2"] * (len(rows) // 2)
    undefined = {column for column in table if table[column].isna().any()}
    assert undefined == (
        {"positive_share"} if name == "layers.csv" else {"filter_share_lowest", "filter_share_highest", "cut_off"}
    )
    for place, column in enumerate(header.split(",")):
        cells = rows[-1].split(",")
        cells[place] = "nan"
        (tmp_path / name).write_text("\n".join([header, *rows[:-1], ",".join(cells)]) + "\n")
        if column in undefined:
            assert isnan(read_table(tmp_path, RUN, name)[column].iloc[-1])
        else:
            with pytest.raises(ValueError, match=f"{tmp_path / name} is none that the run leaves"):
                read_table(tmp_path, RUN, name)


FOREIGN: dict[str, Callable[[list[str]], list[str]]] = {
    "empty": lambda lines: [],
    "no rows": lambda lines: lines[:1],
    "no header": lambda lines: lines[1:],
    "another column": lambda lines: [lines[0].replace("weights", "size"), *lines[1:]],
    "a column more": lambda lines: [line + ",1" for line in lines],
    "a column less": lambda lines: [line.rpartition(",")[0] for line in lines],
    "columns in another order": lambda lines: [re.sub("(.*?),(.*?),(.*)", r"\2,\1,\3", line) for line in lines],
    "a row less": lambda lines: lines[:-1],
    "a row twice": lambda lines: [*lines, lines[-1]],
    "an epoch less": lambda lines: [lines[0], *(line for line in lines[1:] if not re.match("2,|3,2|4,2", line))],
    "more epochs than the run": lambda lines: [*lines, *(re.sub("^.", "4", line) for line in lines[-2:])],
    "an epoch without end": lambda lines: [*lines[:-1], re.sub("^(.,)?3,", r"\1inf,", lines[-1])],
    "a huge epoch": lambda lines: [*lines[:-1], re.sub("^(.,)?3,", r"\g<1>1e300,", lines[-1])],
    "epochs backwards": lambda lines: [lines[0], *lines[:0:-1]],
    "another layer in one epoch": lambda lines: [*lines[:-1], lines[-1].replace(",2,9", ",3,9")],
    "a word": lambda lines: [*lines[:-1], lines[-1].rpartition(",")[0] + ",high"],
    "an empty cell": lambda lines: [*lines[:-1], lines[-1].rpartition(",")[0] + ","],
    "the header twice": lambda lines: [*lines, lines[0]],
    "another kind of table": lambda lines: ["a,b", "1,2"],
    "no table": lambda lines: ['"'],
    "a row cut": lambda lines: [*lines[:-1], lines[-1][:9]],
}


@pytest.mark.parametrize("change", FOREIGN)
@pytest.mark.parametrize("name", TABLES)
def test_what_no_run_leaves_is_no_table(name: str, change: str, tmp_path: Path) -> None:
    lines = FOREIGN[change](TABLES[name].splitlines())
    if name == "trace.csv" and change == "more epochs than the run":
        lines = [*TABLES[name].splitlines(), *(re.sub("^.,.", "7,4", line) for line in lines[-2:])]
    (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    with pytest.raises(ValueError, match=str(tmp_path / name)):
        read_table(tmp_path, RUN, name)


@pytest.mark.parametrize("name", TABLES)
def test_bytes_that_are_no_text_and_no_file_are_no_table(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path, RUN, name)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00\n" * 5)
    with pytest.raises(ValueError, match=str(tmp_path / name)):
        read_table(tmp_path, RUN, name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=str(tmp_path / name)):
        read_table(tmp_path, RUN, name)


@pytest.mark.parametrize("layer", ["null", "NA", "nan", "None", "", "1", "01", "1e5", "True", '"a,b"'])
def test_a_layer_of_any_name_is_read_by_its_name(layer: str, tmp_path: Path) -> None:
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text.replace(",2,9", f",{layer},9"))
        assert list(read_table(tmp_path, RUN, name)["layer"])[:2] == ["0", layer.strip('"')]


def test_a_network_without_binary_layers_has_tables_without_rows(tmp_path: Path) -> None:
    (tmp_path / "layers.csv").write_text("\n")
    table = read_table(tmp_path, RUN, "layers.csv")
    assert list(table) == LAYERS_CSV.splitlines()[0].split(",") and table.empty


def test_a_table_of_fewer_epochs_is_that_of_a_run_under_way_or_diverged(tmp_path: Path) -> None:
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
        assert len(read_table(tmp_path, replace(RUN, epochs=5), name)) == text.count("\n") - 1


def test_finished_runs_without_rows_are_left_out_by_name_and_never_as_diverged(
    tmp_path: Path, leave: Callable[[Run, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Run(seed=seed, epochs=3, trace=1) for seed in range(4)]
    for run in runs[:3]:
        leave(run, json.dumps(RESULT))
    leave(runs[3], json.dumps({"status": "diverged: NaN in layer '0' in epoch 1"}))
    for run in runs[:2]:
        (run_folder(tmp_path, run) / "trace.csv").write_text(TRACE_CSV)
    (run_folder(tmp_path, runs[0]) / "layers.csv").write_text(LAYERS_CSV)
    (run_folder(tmp_path, runs[1]) / "layers.csv").write_text(LAYERS_CSV.replace("0.1", "nan"))
    records, trace, layers = read_records(tmp_path, runs), read_trace(tmp_path, runs), read_layers(tmp_path, runs)
    assert [row["seed"] for row in having(records, trace)] == [0, 1, 3]
    assert [row["seed"] for row in having(records, trace, layers)] == [0, 3]
    no_trace, odd_layers, no_layers = capsys.readouterr().err.splitlines()
    assert no_trace == f"{runs[2].name}: trace.csv is missing, and the run is left out"
    assert (
        odd_layers.startswith(f"{runs[1].name}: layers.csv is missing (") and "none that the run leaves" in odd_layers
    )
    assert no_layers == f"{runs[2].name}: layers.csv is missing, and the run is left out"
    with pytest.raises(ValueError, match="no run has left what is to be shown"):
        having(records[:3], pd.DataFrame())


def test_a_second_command_keeps_the_runs_of_the_first_in_results_csv(
    tmp_path: Path, leave: Callable[[Run, str], None]
) -> None:
    first, second = [Run(seed=1, epochs=3)], [Run(method="sign", epochs=3), Run(seed=0, epochs=3)]
    for runs in (first, second):
        for run in runs:
            leave(run, json.dumps(RESULT))
            (run_folder(tmp_path, run) / "config.json").write_text(json.dumps(asdict(run)))
        path = write_results(tmp_path, read_records(tmp_path, runs))
    assert list(pd.read_csv(path)["run"]) == [run.name for run in (*second, *first)]
    write_results(tmp_path, read_records(tmp_path, first))
    assert list(pd.read_csv(path)["run"]) == [first[0].name, second[0].name, second[1].name]


def test_pandas_groups_results_by_their_whole_configuration_and_keeps_every_row(
    tmp_path: Path, leave: Callable[[Run, str], None]
) -> None:
    runs = [
        Run(seed=0, epochs=3),
        Run(seed=1, epochs=3, schedule="step", milestones=(1, 2), skip=("first",), data_root="/data"),
        Run(method="dense", epochs=3),
    ]
    leave(runs[0], json.dumps(RESULT))
    leave(runs[1], json.dumps(RESULT))
    leave(runs[2], json.dumps({"status": "diverged: NaN in layer '0' in epoch 1"}))
    table = pd.read_csv(write_results(tmp_path, read_records(tmp_path, runs)))
    configuration = [field.name for field in fields(Run)]
    assert len(table.groupby(configuration)) == 3
    assert list(table["skip"]) == ["none", "first", "none"]
    assert list(table["milestones"]) == ["none", "1 2", "none"]
    assert list(table["data_root"]) == ["none", "/data", "none"]
    assert isnan(table["test_top1"][2])  # of a result that is not there
    assert read_records(tmp_path, runs)[0]["skip"] == ""  # the table only


def test_a_record_tells_its_data_by_the_first_digits_of_their_digest(
    tmp_path: Path, leave: Callable[[Run, str], None]
) -> None:
    runs = [Run(seed=seed, epochs=3) for seed in range(3)]
    for run in runs:
        leave(run, json.dumps(RESULT))
    digest = DataDigest(1, ("a", "b"), Part(3, "l", "c"), Part(2, "l", "c"))
    (run_folder(tmp_path, runs[1]) / "data.json").write_text(json.dumps(digest.to_json()))
    (run_folder(tmp_path, runs[2]) / "data.json").write_text("{}")
    records = read_records(tmp_path, runs)
    assert [row["data_digest"] for row in records] == ["", digest.sha256[:12], ""]
    assert list(pd.read_csv(write_results(tmp_path, records))["data_digest"]) == ["none", digest.sha256[:12], "none"]


def test_a_result_without_a_validation_where_images_are_held_out_is_not_done(tmp_path: Path) -> None:
    held_out = replace(RUN, holdout=0.1)
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert read_result(tmp_path, RUN) is not None and read_result(tmp_path, held_out) is None
    (tmp_path / "result.json").write_text(json.dumps({**RESULT, "validation_top1": 70.0}))
    assert read_result(tmp_path, held_out) is not None


def test_a_trace_that_lacks_a_step_in_one_epoch_is_no_table(tmp_path: Path) -> None:
    lines = TRACE_CSV.splitlines(keepends=True)
    (tmp_path / "trace.csv").write_text("".join(lines[: -len(NAMES)]))
    with pytest.raises(ValueError, match="is none that the run leaves"):
        read_table(tmp_path, RUN, "trace.csv")

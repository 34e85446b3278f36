from __future__ import annotations

import inspect
import json
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf import LATENT_GRADIENTS, METHODS, MODELS, SCALES, SCORE_GRADIENTS, sparse
from mpt_bihalf.data import DATASETS
from mpt_bihalf.training import Run, config, train
from mpt_bihalf.training.build import check_computes
from mpt_bihalf.training.config import ADDED, DEFAULTS
from tests.reference import one_line_error

# For each field that a result depends on: what makes it count, and two values.
DEPENDS = {
    "method": ({}, "mpt-bihalf", "mpt-sign"),
    "model": ({}, "conv2", "conv4"),
    "data": ({}, "digits", "cifar10"),
    "image_size": ({}, 0, 32),
    "prune_rate": ({}, 0.5, 0.6),
    "p_pos": ({}, 0.5, 0.6),
    "scope": ({}, "layer", "global"),
    "skip": ({}, (), ("first",)),
    "init": ({}, "kaiming_normal", "signed_constant"),
    "scale": ({}, "kaiming", "l1"),
    "latent_gradient": ({"method": "bihalf"}, "scaled", "unscaled"),
    "score_gradient": ({}, "latent", "binary"),
    "train_affine": ({}, False, True),
    "learn_mask": ({}, True, False),
    "epochs": ({}, 10, 11),
    "batch_size": ({}, 128, 64),
    "optimizer": ({}, "sgd", "adam"),
    "lr": ({}, 0.1, 0.2),
    "momentum": ({}, 0.9, 0.8),
    "weight_decay": ({}, 1e-4, 1e-5),
    "bop_gamma": ({"method": "bop"}, 1e-4, 1e-3),
    "bop_tau": ({"method": "bop"}, 1e-8, 1e-6),
    "schedule": ({}, "cosine", "constant"),
    "milestones": ({"schedule": "step"}, (3,), (3, 5)),
    "holdout": ({}, 0.0, 0.1),
    "seed": ({}, 0, 1),
    "device": ({}, "cpu", "cuda"),
    "trace": ({}, 0, 5),
    "precision": ({}, "fp32", "bf16"),
    "threads": ({}, 1, 2),
    "width": ({}, 1.0, 0.5),
    "activations": ({}, "real", "clip"),
    "prune_epochs": ({"prune_rate": 0.9}, 0, 10),
    "ede_t0": ({"method": "irnet"}, 0.1, 0.01),
    "processes": ({}, 1, 2),
    "sync_bn": ({"processes": 2}, False, True),
    "augment": ({}, "auto", "standard"),
    "flip": ({}, "auto", "on"),
    "crop_padding": ({}, "auto", "on"),
    "compile": ({}, False, True),
    "scale_on": ({"activations": "binary"}, "weight", "output"),
    "compute": ({}, "dense", "sparse"),
    "graph": ({}, False, True),
    "block": ({"activations": "binary"}, "", "norm-first"),
    "output_scale": ({"activations": "binary"}, "none", "gamma-2"),
    "input_scale": ({"activations": "binary"}, False, True),
    "penalty": ({"method": "sign"}, "none", "r2"),
    "penalty_lambda": ({"method": "bnn+"}, 1e-6, 1e-3),
    "centre": ({"method": "sign"}, False, True),
    "clip_weights": ({"method": "sign"}, False, True),
    "label_smoothing": ({}, 0.0, 0.1),
    "rotation_gradient": ({"method": "rbnn"}, "exact", "code"),
    "mask": ({"method": "sign", "prune_rate": 0.5}, "snip", "synflow"),
    "imp_share": ({"method": "sign", "mask": "imp"}, 0.2, 0.5),
    "imp_criterion": ({"method": "bihalf", "mask": "imp"}, "magnitude", "cutoff"),
    "rewind": ({"method": "sign", "mask": "imp"}, "", "500it"),
    "imp_control": ({"method": "sign", "mask": "imp"}, "", "shuffled"),
    "nesterov": ({}, False, True),
    "augmix_severity": ({"augment": "augmix"}, 3.0, 5.0),
    "gaussian_std": ({"augment": "gaussian"}, 0.1, 0.2),
    "gaussian_clean": ({"augment": "gaussian"}, 0.5, 0.0),
    "jsd": ({"augment": "augmix"}, False, True),
    "warmup": ({}, 0, 2),
    "redraw": ({}, "", "iterand"),
    "redraw_every": ({"redraw": "iterand"}, 300, 100),
    "redraw_share": ({"redraw": "recycle"}, 0.2, 0.1),
}


@pytest.mark.parametrize("known", [METHODS, MODELS, DATASETS, SCALES, LATENT_GRADIENTS, SCORE_GRADIENTS])
def test_the_help_names_all_that_may_be_chosen(known: dict[str, object]) -> None:
    told = inspect.getsource(Run)
    assert [name for name in known if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", told)] == []


def test_every_field_is_said_to_bear_on_the_result_or_not() -> None:
    assert {field.name for field in fields(Run)} == {*DEPENDS, "data_root", "workers", "data_digest"}


@pytest.mark.parametrize("field", DEPENDS)
def test_the_hash_depends_on_what_determines_the_result(field: str) -> None:
    settings, one, other = DEPENDS[field]
    first, second = (Run(**{**settings, field: value}) for value in (one, other))
    assert first.hash != second.hash
    assert first.name != second.name
    assert Run(**{**settings, field: one}).name == first.name


def test_the_hash_does_not_depend_on_where_the_data_lie_and_who_decodes_them() -> None:
    assert Run(data_root="/a").name == Run(data_root="/b").name
    assert Run(workers=1).name == Run(workers=2).name


def test_runs_made_before_there_were_more_fields_keep_their_names_and_can_be_read() -> None:
    assert Run(method="irnet").hash == "9b0e46e25e"
    old = {name: value for name, value in asdict(Run(method="irnet")).items() if name not in ADDED}
    assert Run.from_dict(old) == Run(method="irnet")


def test_several_processes_are_needed_for_synchronised_batch_norm() -> None:
    assert Run(sync_bn=True, device="cpu").resolved() == Run(device="cpu").resolved()


@pytest.mark.parametrize("loops", [True, False])
def test_compute_is_decided_by_machine_network_and_rate(loops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "available", lambda device="cpu": loops and device == "cpu")

    def of(**fields: Any) -> str:
        run = Run(device="cpu", **fields)
        assert run.resolved().resolved() == run.resolved()
        return run.resolved().compute

    can = "sparse" if loops else "dense"
    assert of() == of(prune_rate=0.3) == of(prune_rate=0.9) == of(model="resnet18") == of(activations="binary") == can
    assert of(prune_rate=0.9, prune_epochs=3) == of(model="resnet20", prune_rate=0.95) == can
    for given in (
        {"prune_rate": 0.29},
        {"model": "resnet18", "prune_rate": 0.49},
        {"method": "bihalf", "prune_rate": 0.9},
        {"method": "dense"},
        {"method": "dense", "compute": "sparse"},
        {"precision": "bf16"},
        {"compile": True},
        {"compute": "dense"},
        {"model": "resnet20"},
        {"model": "torchvision:resnet18", "prune_rate": 0.9},
    ):
        assert of(**given) == "dense"
    assert Run().compute == "auto" and Run(prune_rate=0.1).compute == "dense"
    if loops:
        assert of(model="torchvision:resnet18", compute="sparse") == "sparse"
    else:
        with pytest.raises(ValueError, match="compute sparse needs a processor with AVX2"):
            of(compute="sparse")


def test_sparse_compute_is_refused_where_it_is_not_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in ({"precision": "fp16"}, {"precision": "bf16"}, {"compile": True}):
        with pytest.raises(ValueError, match="compute sparse is in float32 and not compiled"):
            Run(compute="sparse", **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^compute sparse is for the cpu, not cuda: leave"):
        Run(compute="sparse", device="cuda")
    assert "is for the CPU, not cuda" in sparse.why_not("cuda")
    assert not sparse.available("cuda")
    with pytest.raises(ValueError, match=r"compute is auto: Run\.resolved decides it"):
        check_computes(Run(device="cpu", threads=1))
    monkeypatch.setattr(sparse.kernels, "compiled", lambda: None)  # as of a worker without a compiler
    with pytest.raises(ValueError, match=r"^compute sparse needs a processor with AVX2 and the compiled loops"):
        train(Run(device="cpu", threads=1, compute="sparse"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def two_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torchrun had started four processes, two of them on this machine of eight cores."""
    monkeypatch.setattr(config, "usable_cores", lambda: 8)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.usefixtures("two_of_four")
def test_a_run_is_shared_by_the_processes_that_torchrun_started() -> None:
    run = Run(device="cpu", sync_bn=True).resolved()
    assert (run.processes, run.threads, run.sync_bn) == (4, 4, True)
    assert run.resolved() == run
    assert Run(device="cpu", threads=3).resolved().threads == 3
    with pytest.raises(ValueError, match="batch_size 66 cannot be divided evenly among 4 processes"):
        Run(device="cpu", batch_size=66).resolved()
    with pytest.raises(ValueError, match=r"processes is 2, but this command was started with 4: .*--nproc-per-node 2"):
        Run(device="cpu", processes=2).resolved()


def test_a_run_of_several_processes_needs_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"processes is 2, but this command was started with 1: .*torchrun"):
        Run(device="cpu", processes=2).resolved()
    with pytest.raises(ValueError, match="the run is one of 2 processes, and 1 are here"):
        train(Run(device="cpu", threads=1, compute="dense", processes=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{}, {"schedule": "step", "milestones": (3, 5), "skip": ("first", "8")}])
def test_a_configuration_survives_json(settings: dict[str, object]) -> None:
    run = Run(**settings)  # type: ignore[arg-type]
    again = Run.from_dict(json.loads(json.dumps(asdict(run))))
    assert again == run
    assert again.hash == run.hash


def test_a_configuration_with_a_field_too_few_or_too_many_is_refused() -> None:
    values = asdict(Run())
    with pytest.raises(ValueError, match="colour"):
        Run.from_dict({**values, "colour": "red"})
    del values["lr"]
    with pytest.raises(ValueError, match="'lr'"):
        Run.from_dict(values)


def test_a_resolved_run_names_its_device_and_its_threads() -> None:
    run = Run().resolved()
    assert run.device != "auto"
    assert run.threads >= 1
    assert run.resolved() == run
    assert replace(Run(), threads=3).resolved().threads == 3


@pytest.mark.parametrize("path", ["/data/mine", "/data/my pictures", "/a:b", "C:/x", "/x/", ".", "..", "~", "/", "/ü"])
def test_a_runs_folder_is_one_name_below_its_parent_whatever_the_data(path: str, tmp_path: Path) -> None:
    folder = tmp_path / Run(data=f"folder:{path}").name
    folder.mkdir()
    assert [child.name for child in tmp_path.iterdir()] == [folder.name]
    assert not set(folder.name) & set('/\\:*?"<>|\n\0')


@pytest.mark.parametrize("name", ["a" * 240, "é" * 120, "line\nbreak", 'a*b?"<c>|'])
def test_odd_names_of_data_folders_make_plain_names_of_run_folders(name: str, tmp_path: Path) -> None:
    folder = tmp_path / Run(data=f"folder:{tmp_path / name}").name
    folder.mkdir()
    assert not set(folder.name) & set('/\\:*?"<>|\n\0')


def test_a_runs_folder_can_be_read() -> None:
    assert Run(method="mpt-sign", prune_rate=0.25, seed=7).name.startswith("conv2-digits-mpt-sign-pruned0.25-seed7-")
    assert Run(method="sign", seed=7).name.startswith("conv2-digits-sign-seed7-")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1.0},
        {"seed": True},
        {"lr": "0.1"},
        {"lr": False},
        {"device": 3},
        {"skip": ["first", 1]},
        {"milestones": [1.5]},
    ],
)
def test_a_configuration_with_a_field_of_another_type_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Run.from_dict({**asdict(Run()), **change})


def test_a_whole_number_is_a_number_in_a_configuration_too() -> None:
    assert Run.from_dict({**asdict(Run()), "lr": 1}) == Run(lr=1)


def test_of_a_value_that_is_none_the_beginning_is_told() -> None:
    inner: Any = []
    for _ in range(10):  # twice the lists at each step: all of them would take for ever at a few more
        inner = [inner, inner]
    with one_line_error(r"seed is \(\[+\.\.\."):
        Run.from_dict(asdict(Run()) | {"seed": inner})


def test_a_record_with_more_items_than_any_run_has_is_refused() -> None:
    values = {**DEFAULTS, "schedule": "step", "milestones": [1] * 1_001}
    with pytest.raises(ValueError, match="milestones has 1,001 items"):
        Run.from_dict(values)

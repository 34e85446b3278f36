from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_bihalf.methods import METHODS
from mpt_bihalf.sweep.records import find_runs, read_records, read_run, run_folder
from mpt_bihalf.sweep.survey import survey
from mpt_bihalf.sweep.varied import differing, short_name
from mpt_bihalf.training import Run
from mpt_bihalf.training.config import DEFAULTS
from mpt_bihalf.training.names import WHERE

# A value that is no default for each field that a name has, with what else it takes to have an effect.
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "method": ("irnet", {}),
    "model": ("conv4", {}),
    "width": (0.25, {}),
    "activations": ("ede", {}),
    "block": ("norm-first", {"activations": "binary"}),
    "output_scale": ("gamma-2", {"activations": "binary"}),
    "input_scale": (True, {"activations": "binary"}),
    "penalty": ("r2", {"method": "sign"}),
    "penalty_lambda": (0.5, {"method": "bnn+"}),
    "centre": (True, {"method": "sign"}),
    "clip_weights": (True, {"method": "sign"}),
    "rotation_gradient": ("code", {"method": "rbnn"}),
    "mask": ("snip", {"method": "sign"}),
    "imp_share": (0.5, {"method": "sign", "mask": "imp"}),
    "imp_criterion": ("cutoff", {"method": "bihalf", "mask": "imp"}),
    "rewind": ("2ep", {"method": "sign", "mask": "imp"}),
    "imp_control": ("redrawn", {"method": "sign", "mask": "imp"}),
    "nesterov": (True, {}),
    "augmix_severity": (5.5, {"augment": "augmix"}),
    "gaussian_std": (0.2, {"augment": "gaussian"}),
    "gaussian_clean": (0.0, {"augment": "gaussian"}),
    "jsd": (True, {"augment": "augmix"}),
    "warmup": (2, {}),
    "redraw": ("recycle", {}),
    "redraw_every": (100, {"redraw": "iterand"}),
    "redraw_share": (0.3, {"redraw": "iterand"}),
    "data": ("cifar10", {}),
    "image_size": (32, {}),
    "augment": ("standard", {}),
    "flip": ("on", {}),
    "crop_padding": ("on", {}),
    "prune_rate": (0.9, {}),
    "prune_epochs": (3, {"prune_rate": 0.9}),
    "p_pos": (0.3, {}),
    "scope": ("global", {}),
    "skip": (("0", "2"), {}),
    "init": ("signed_constant", {}),
    "scale": ("l1", {}),
    "scale_on": ("weight", {"activations": "binary"}),
    "latent_gradient": ("unscaled", {"method": "bihalf"}),
    "ede_t0": (0.5, {"method": "irnet"}),
    "score_gradient": ("binary", {"method": "mpt-sign"}),
    "train_affine": (True, {}),
    "learn_mask": (False, {}),
    "epochs": (3, {}),
    "batch_size": (64, {}),
    "optimizer": ("adam", {}),
    "lr": (0.3, {}),
    "momentum": (0.5, {}),
    "weight_decay": (0.0, {}),
    "bop_gamma": (0.5, {"method": "bop"}),
    "bop_tau": (0.5, {"method": "bop"}),
    "schedule": ("constant", {}),
    "milestones": ((3, 5), {"schedule": "step"}),
    "label_smoothing": (0.1, {}),
    "holdout": (0.2, {}),
    "seed": (7, {}),
    "device": ("cuda", {}),
    "trace": (5, {}),
    "precision": ("bf16", {}),
    "compile": (True, {}),
    "graph": (True, {}),
    "compute": ("sparse", {"prune_rate": 0.9}),
    "threads": (3, {}),
    "processes": (2, {}),
    "sync_bn": (True, {}),
}
IN_FULL = {"model", "data", "method", "prune_rate", "seed"}


def words(run: Run) -> str:
    """The name without the hash."""
    assert run.name.endswith(f"-{run.hash}")
    return run.name.removesuffix(f"-{run.hash}")


def test_every_field_is_looked_at() -> None:
    assert set(OTHERS) == set(DEFAULTS) - {*WHERE}


@pytest.mark.parametrize("field", OTHERS)
def test_a_name_says_each_field_that_is_no_default(field: str) -> None:
    value, others = OTHERS[field]
    beside = {"milestones": (1,)} if field == "milestones" else {}
    plain, other = Run(**{**others, **beside}), Run(**{**others, field: value})
    assert plain.hash != other.hash and words(plain) != words(other)
    if field not in IN_FULL:
        shown = "+".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
        shown = {"0.0": "0"}.get(shown, shown)
        assert f"-{field}={shown}" in words(other)


def test_what_follows_from_other_fields_is_not_named() -> None:
    assert words(Run()) == "conv2-digits-mpt-bihalf-pruned0.5-seed0"
    assert words(Run(method="dense")) == "conv2-digits-dense-seed0"
    assert words(Run(method="irnet", seed=3)) == "conv2-digits-irnet-seed3"  # its scale and gradient are its own
    assert words(Run(optimizer="adam")) == "conv2-digits-mpt-bihalf-pruned0.5-seed0-optimizer=adam"
    assert words(Run(activations="binary")) == "conv2-w1a1-digits-mpt-bihalf-pruned0.5-seed0"
    assert words(Run(activations="binary", model="resnet20", method="irnet")) == "resnet20-w1a1-digits-irnet-seed0"
    run = Run(method="sign", lr=0.3, epochs=5, data="folder:/some/where/my images", model="torchvision:alexnet")
    assert words(run) == "torchvision-alexnet-my-images-sign-seed0-epochs=5-lr=0.3"
    resolved = replace(Run(prune_rate=0.9), device="cpu", threads=2, compute="sparse")
    assert words(resolved) == "conv2-digits-mpt-bihalf-pruned0.9-seed0-device=cpu-compute=sparse-threads=2"


def test_numbers_are_said_to_the_last_digit() -> None:
    assert "-pruned0.12345678-" in Run(prune_rate=0.12345678).name
    assert "-lr=0.30000001-" in Run(lr=0.30000001).name
    assert "-weight_decay=1e-05-" in Run(weight_decay=1e-5).name


@given(
    skip=st.lists(st.text(min_size=1, max_size=300), max_size=40),
    lr=st.floats(0, 1e30),
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(0, 0.999),
    data=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300),
    image_size=st.integers(0, 1024),
    width=st.floats(0.001, 64),
    milestones=st.lists(st.integers(1, 10**6), min_size=1, max_size=40),
    weight_decay=st.floats(0, 1e30),
    holdout=st.floats(0, 0.99),
)
def test_a_name_has_200_bytes_at_most_and_can_name_a_folder_anywhere(
    skip: list[str], data: str, lr: float, seed: int, rate: float, milestones: list[int], **others: Any
) -> None:
    fields = {"skip": tuple(skip), "schedule": "step", "milestones": tuple(milestones), "init": "signed_constant"}
    run = Run(data=f"folder:/x{data}", lr=lr, seed=seed, prune_rate=rate, **fields, **others)
    assert len(run.name.encode()) <= 200
    assert re.fullmatch(r"[A-Za-z0-9._+=-]+", run.name) and run.name.endswith(f"-{run.hash}")


def test_what_has_no_room_is_counted() -> None:
    fields: dict[str, Any] = {"lr": 0.123456789, "weight_decay": 0.123456789, "holdout": 0.123456789, "threads": 1}
    run = Run(skip=("a" * 99,), width=0.123456789, p_pos=0.123456789, momentum=0.123456789, trace=3, **fields)
    assert re.search(r"-and-\d+-more-\w{10}$", run.name)


def leave(folder: Path, run: Run, top1: float) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**vars(run)}))
    figures = {f"{split}_{figure}": top1 for split in ("train", "test") for figure in ("loss", "top1", "top5")}
    (folder / "result.json").write_text(json.dumps({"status": "finished", "epochs": run.epochs, **figures}))


def test_a_run_is_found_and_believed_by_its_hash_under_any_name(tmp_path: Path) -> None:
    run, other = Run(lr=0.3), Run(lr=0.1)
    old = tmp_path / "runs" / f"conv2-digits-mpt-bihalf-pruned0.5-seed0-{run.hash}"
    leave(old, run, 50.0)
    assert old.name != run.name
    assert run_folder(tmp_path, run) == old and read_run(old) == run
    assert run_folder(tmp_path, other) == tmp_path / "runs" / other.name
    assert [row["run"] for row in read_records(tmp_path, [run, other])] == [old.name]
    assert find_runs(tmp_path) == [run]
    leave(tmp_path / "runs" / other.name, other, 60.0)
    assert run_folder(tmp_path, other).name == other.name  # one that came since
    found = survey(tmp_path)
    assert {status.name for status in found.runs} == {old.name, other.name} and not found.strangers


def test_of_two_folders_of_a_run_that_of_its_name_counts(tmp_path: Path) -> None:
    run = Run()
    leave(tmp_path / "runs" / f"a-copy-{run.hash}", run, 50.0)
    leave(tmp_path / "runs" / run.name, run, 60.0)
    assert [row["test_top1"] for row in read_records(tmp_path, find_runs(tmp_path))] == [60.0]
    found = survey(tmp_path)
    assert [status.name for status in found.runs] == [run.name] and found.strangers == 1


def test_a_name_with_the_hash_of_another_run_is_not_believed(tmp_path: Path) -> None:
    run = Run()
    leave(tmp_path / "runs" / run.name, replace(run, seed=1), 50.0)
    with pytest.raises(ValueError, match="is not believed"):
        read_run(tmp_path / "runs" / run.name)
    shutil.rmtree(tmp_path / "runs")
    leave(tmp_path / "runs" / "kept", run, 50.0)
    with pytest.raises(ValueError, match="is not believed"):
        read_run(tmp_path / "runs" / "kept")


def test_runs_are_told_apart_by_exactly_what_differs() -> None:
    runs = [Run(lr=lr, method=method, seed=seed) for lr in (0.3, 0.1) for method in METHODS for seed in (0, 1)]
    names = differing(runs)
    assert names == ["method", "lr", "seed"]
    assert short_name(Run(method="sign", lr=0.3, seed=1), names) == "sign lr=0.3 seed=1"
    assert len({short_name(run, names) for run in runs}) == len(runs)
    assert differing([Run(), Run()]) == [] and short_name(Run(), []) == Run().name
    rates = [replace(Run(prune_rate=rate), compute=compute) for rate, compute in ((0.1, "dense"), (0.9, "sparse"))]
    assert differing(rates) == ["prune_rate"]  # which decides how layers compute
    assert differing([replace(Run(prune_rate=0.9), compute=compute) for compute in ("dense", "sparse")]) == ["compute"]
    images = [Run(data=f"folder:/a/{name}", skip=skip) for name in ("x", "y") for skip in (("0",), ("0", "2"))]
    assert short_name(images[1], differing(images)) == "x skip=0+2"

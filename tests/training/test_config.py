from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf.data import DATASETS
from mpt_bihalf.data.digits import load_digits
from mpt_bihalf.gradients import SCORE_GRADIENTS
from mpt_bihalf.methods import METHODS
from mpt_bihalf.models import MODELS
from mpt_bihalf.training import Run, config, train
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
}

IGNORED = [
    ("sign", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "score_gradient": "binary", "train_affine": True}),
    ("irnet", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "learn_mask": False, "bop_gamma": 0.5}),
    ("bop", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "learn_mask": False, "score_gradient": "binary"}),
    ("bihalf", {"prune_rate": 0.9, "scope": "filter", "score_gradient": "binary", "train_affine": True}),
    ("dense", {"prune_rate": 0.9, "p_pos": 0.3, "scale": "l1", "skip": ("first",), "latent_gradient": "unscaled"}),
    ("mpt-sign", {"p_pos": 0.3, "latent_gradient": "unscaled", "bop_tau": 0.5}),
    ("mpt-bihalf", {"latent_gradient": "unscaled"}),
    ("mpt-balanced", {"scope": "global", "latent_gradient": "unscaled"}),
    ("magnitude-sign", {"p_pos": 0.3, "scope": "global", "score_gradient": "binary", "train_affine": True}),
    ("magnitude-bihalf", {"scope": "global", "score_gradient": "binary", "train_affine": True}),
]

UNKNOWN = ["method", "model", "data", "scope", "init", "scale", "latent_gradient", "score_gradient"]
UNKNOWN += ["optimizer", "schedule", "precision", "activations", "augment", "flip", "crop_padding"]


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


@pytest.mark.parametrize(
    ("method", "estimator"), [("bihalf", "clip"), ("sign", "clip"), ("mpt-sign", "approx"), ("irnet", "ede")]
)
def test_binary_activations_have_the_gradient_that_goes_with_the_method(method: str, estimator: str) -> None:
    assert Run(method=method, activations="binary") == Run(method=method, activations=estimator)


def test_the_pruning_rate_rises_only_where_there_is_a_mask_and_more_to_prune_than_half() -> None:
    assert Run(prune_rate=0.5, prune_epochs=5) == Run(prune_rate=0.5)
    assert Run(method="sign", prune_rate=0.9, prune_epochs=5) == Run(method="sign")
    assert Run(prune_rate=0.9, prune_epochs=5).prune_epochs == 5


def test_the_start_of_ede_counts_only_where_ede_is() -> None:
    assert Run(method="sign", ede_t0=0.3) == Run(method="sign")
    assert Run(method="irnet") == Run(method="irnet", ede_t0=0.1)
    assert Run(method="sign", activations="ede", ede_t0=0.3).ede_t0 == 0.3


def test_several_processes_are_needed_for_synchronised_batch_norm() -> None:
    assert Run(sync_bn=True, device="cpu").resolved() == Run(device="cpu").resolved()


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
        train(Run(device="cpu", threads=1, processes=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("method", "options"), IGNORED, ids=[method for method, _ in IGNORED])
def test_options_that_a_method_does_not_look_at_do_not_make_another_run(
    method: str, options: dict[str, object]
) -> None:
    for name, value in options.items():
        assert Run(**{"method": method, name: value}) == Run(method=method), name  # type: ignore[arg-type]


def test_the_cases_of_ignored_options_cover_every_method() -> None:
    assert {method for method, _ in IGNORED} == set(METHODS)


def test_options_that_other_options_make_void_do_not_make_another_run() -> None:
    assert Run(milestones=(3,)) == Run()
    assert Run(optimizer="adam", momentum=0.5) == Run(optimizer="adam")
    assert Run(skip=("none",)) == Run()
    assert Run(skip=("first", "first")) == Run(skip=("first",))


AUGMENTATIONS = [
    dict(zip(("augment", "flip", "crop_padding"), values, strict=True))
    for values in product(("auto", "none", "standard"), ("auto", "on", "off"), ("auto", "on", "off"))
]


@pytest.mark.parametrize(
    ("data", "own", "effects"),
    [
        ("digits", "off", 4),
        *((data, "on", 4) for data in ("fashion-mnist", "cifar10", "cifar100", "imagenet", "imagenet:/a", "folder:/a")),
        ("mine", "its own", 9),  # a data set that only its loader knows: on, off or its own, flip and crop each
    ],
)
def test_runs_whose_images_are_augmented_alike_have_one_name_and_others_another(
    data: str, own: str, effects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "mine", load_digits)
    found = set()
    for fields_given in AUGMENTATIONS:
        both = {"auto": own, "none": "off", "standard": "on"}[fields_given["augment"]]
        flip, crop = (both if part == "auto" else part for part in list(fields_given.values())[1:])
        run = Run(data=data, **fields_given)  # type: ignore[arg-type]
        said = tuple({True: "on", False: "off", None: own}[part] for part in run.augmentation)
        assert said == (flip, crop), fields_given
        assert replace(run) == run == Run.from_dict(asdict(run))
        found.add(((flip, crop), run.name))
        if (flip, crop) == (own, own):
            assert run == Run(data=data)
        elif flip == crop:
            assert (run.augment, run.flip, run.crop_padding) == (
                "none" if flip == "off" else "standard",
                "auto",
                "auto",
            )
    assert len(found) == len({name for _, name in found}) == len({effect for effect, _ in found}) == effects


@pytest.mark.parametrize(
    ("method", "scale"),
    [
        ("irnet", "power-of-two"),
        ("mpt-sign", "l1"),
        ("mpt-bihalf", "kaiming"),
        ("mpt-balanced", "kaiming"),
        ("sign", "kaiming"),
    ],
)
def test_naming_a_methods_own_scale_does_not_make_another_run(method: str, scale: str) -> None:
    assert Run(method=method, scale=scale) == Run(method=method)
    assert Run(method=method).scale == scale


def test_a_folder_of_images_is_one_run_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    written = ["folder:images", "folder:~/images", f"folder:{tmp_path}/images/", "folder:./images"]
    assert len({Run(data=data).hash for data in written}) == 1
    assert Run(data="folder:images").hash != Run(data="folder:others/images").hash


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


@pytest.mark.parametrize("field", UNKNOWN)
@pytest.mark.parametrize("value", ["nothing", " ", "Sign", "a\nb", "ü"])
def test_an_unknown_name_is_refused_in_one_line(field: str, value: str) -> None:
    with pytest.raises(ValueError) as error:
        Run(**{field: value})  # type: ignore[arg-type]
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "field", [name for name in UNKNOWN if name not in ("scale", "latent_gradient", "score_gradient")]
)
def test_an_empty_name_is_refused(field: str) -> None:
    with pytest.raises(ValueError):
        Run(**{field: ""})  # type: ignore[arg-type]


def test_a_methods_own_latent_gradient_can_be_named() -> None:
    assert (
        Run(method="irnet", latent_gradient="ede")
        == Run(method="irnet")
        != Run(method="irnet", latent_gradient="scaled")
    )
    assert Run(method="bihalf").latent_gradient == "scaled"


def test_bop_has_no_other_optimizer() -> None:
    with pytest.raises(ValueError, match="optimizer"):
        Run(method="bop", optimizer="adam")


def test_an_unknown_model_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=", ".join(MODELS)):
        Run(model="conv3")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prune_rate", [1.0, 1.5, -0.1, NAN, INF]),
        ("p_pos", [1.5, -0.1, NAN, INF]),
        ("holdout", [1.0, -0.1, NAN, INF]),
        ("lr", [-0.1, NAN, INF, -INF]),
        ("weight_decay", [-0.1, NAN, INF]),
        ("momentum", [-0.1, 1.0, NAN, INF]),
        ("epochs", [0, -1]),
        ("batch_size", [0, -1]),
        ("image_size", [-1]),
        ("seed", [-1, 2**63]),
        ("threads", [-1]),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must .* not {str(value).replace('.', '[.]')}$"):
            Run(**{field: value})  # type: ignore[arg-type]


def test_the_ends_of_the_ranges_are_allowed() -> None:
    Run(prune_rate=0.0, p_pos=0.0, holdout=0.0, lr=0.0, weight_decay=0.0, momentum=0.0, seed=0)
    Run(p_pos=1.0, seed=2**63 - 1)


@pytest.mark.parametrize("milestones", [(), (-1,), (0, -3)])
def test_a_step_schedule_needs_milestones_within_the_run(milestones: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="milestones"):
        Run(schedule="step", milestones=milestones)


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


def test_a_data_root_is_the_same_place_wherever_the_run_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run(data_root="data").data_root == str(tmp_path / "data")


def test_a_methods_own_parts_are_its_runs_and_need_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = replace(METHODS["mpt-sign"], name="mine", score_gradient=SCORE_GRADIENTS["binary"])
    monkeypatch.setitem(METHODS, "mine", mine)
    assert Run(method="mine").score_gradient == "binary"
    assert Run(method="mine", score_gradient="latent").score_gradient == "latent"
    for part, table in (("scale", "SCALES"), ("score_gradient", "SCORE_GRADIENTS")):
        monkeypatch.setitem(METHODS, "mine", replace(mine, **{part: lambda *values: values[0]}))
        with pytest.raises(ValueError, match=f"'mine' has no name.*{table}"):
            Run(method="mine")


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

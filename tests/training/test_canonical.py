from __future__ import annotations

from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest

from mpt_bihalf.data import DATASETS
from mpt_bihalf.data.digits import load_digits
from mpt_bihalf.gradients import SCORE_GRADIENTS
from mpt_bihalf.methods import METHODS
from mpt_bihalf.models import MODELS
from mpt_bihalf.training import Run
from tests.reference import one_line_error

IGNORED = [
    ("sign", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "score_gradient": "binary", "train_affine": True}),
    ("irnet", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "learn_mask": False, "bop_gamma": 0.5}),
    ("bop", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "learn_mask": False, "score_gradient": "binary"}),
    ("bihalf", {"prune_rate": 0.9, "scope": "filter", "score_gradient": "binary", "train_affine": True}),
    ("xnor", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "score_gradient": "binary", "ede_t0": 0.5}),
    ("bi-real", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "learn_mask": False, "bop_gamma": 0.5}),
    ("least-squares", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "filter", "train_affine": True}),
    ("abc", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "filter", "score_gradient": "binary"}),
    ("bnn+", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "filter", "learn_mask": False}),
    ("xnor++", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "learn_mask": False}),
    ("rbnn", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "filter", "learn_mask": False}),
    ("rbnn-bihalf", {"prune_rate": 0.9, "scope": "filter", "score_gradient": "binary"}),
    ("real-to-binary", {"prune_rate": 0.9, "p_pos": 0.3, "scope": "global", "clip_weights": True}),
    ("dense", {"prune_rate": 0.9, "p_pos": 0.3, "scale": "l1", "skip": ("first",), "latent_gradient": "unscaled"}),
    ("mpt-sign", {"p_pos": 0.3, "latent_gradient": "unscaled", "bop_tau": 0.5}),
    ("mpt-bihalf", {"latent_gradient": "unscaled"}),
    ("mpt-balanced", {"scope": "global", "latent_gradient": "unscaled"}),
    ("magnitude-sign", {"p_pos": 0.3, "scope": "global", "score_gradient": "binary", "train_affine": True}),
    ("magnitude-bihalf", {"scope": "global", "score_gradient": "binary", "train_affine": True}),
]
UNKNOWN = ["method", "model", "data", "scope", "init", "scale", "latent_gradient", "score_gradient"]
UNKNOWN += ["optimizer", "schedule", "precision", "activations", "augment", "flip", "crop_padding"]
NAN, INF = float("nan"), float("inf")


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


def test_a_mask_that_is_fixed_prunes_the_methods_that_have_none() -> None:
    for method in ("dense", "sign", "bihalf", "irnet", "rbnn"):
        run = Run(method=method, mask="snip", prune_rate=0.9)
        assert (run.prune_rate, run.scope) == (0.9, "global")
        assert run == Run(method=method, mask="snip", prune_rate=0.9, scope="global", learn_mask=False)
        assert run != Run(method=method, mask="snip", prune_rate=0.9, scope="layer")
    frozen = Run(method="mpt-sign", mask="snip", score_gradient="binary")
    assert frozen == Run(method="mpt-sign", mask="snip") and not frozen.learn_mask
    assert Run(method="dense", mask="snip", skip=("first",)).skip == ("first",)
    assert Run(method="mpt-sign", scope="") == Run(method="mpt-sign", scope="layer") == Run(method="mpt-sign")


def test_masks_that_do_not_go_together_are_refused_in_one_line() -> None:
    for method in ("magnitude-sign", "magnitude-bihalf"):
        with one_line_error(
            f"{method} has a mask of its own, that follows its weights: leave --mask snip out, or take"
        ):
            Run(method=method, mask="snip")
    with one_line_error("grasp takes second derivatives, which binary activations have not: take real ones"):
        Run(method="sign", mask="grasp", activations="binary")
    for mask in ("magnitude", "synflow"):
        with one_line_error(f"{mask} ranks weights by their size, and bop has no others than of one size"):
            Run(method="bop", mask=mask)
        with one_line_error(f"{mask} ranks weights by their size, and init signed_constant draws no others"):
            Run(method="sign", mask=mask, init="signed_constant")
    with one_line_error("prune_epochs is for masks that are learned, and --mask is fixed: leave one of them out"):
        Run(method="mpt-sign", mask="snip", prune_rate=0.9, prune_epochs=3)


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


@pytest.mark.parametrize("field", UNKNOWN)
@pytest.mark.parametrize("value", ["nothing", " ", "Sign", "a\nb", "ü"])
def test_an_unknown_name_is_refused_in_one_line(field: str, value: str) -> None:
    with pytest.raises(ValueError) as error:
        Run(**{field: value})  # type: ignore[arg-type]
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "field", [name for name in UNKNOWN if name not in ("scope", "scale", "latent_gradient", "score_gradient")]
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


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prune_rate", [1.0, 1.5, -0.1, NAN, INF]),
        ("p_pos", [1.5, -0.1, NAN, INF]),
        ("holdout", [1.0, -0.1, NAN, INF]),
        ("label_smoothing", [1.0, -0.1, NAN, INF]),
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

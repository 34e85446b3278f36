from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mpt_bihalf.training import Run

# Experiment, the data and the trials of its recipes, and the batch size where a system's own is not known.
EXPERIMENTS = [("imagenet", "imagenet", 1, 256), ("architectures", "cifar100", 5, 128)]
OF_EACH = pytest.mark.parametrize(("name", "data", "trials", "batch_size"), EXPERIMENTS)
NETWORKS = ("resnet18", "resnet34")


def runs_of(experiment: Any, **options: Any) -> list[Run]:
    return experiment(device="cpu", threads=1, **options).runs()


def expected(trials: int, **fields: Any) -> list[Run]:
    common = {"activations": "binary", "device": "cpu", "compute": "dense", "threads": 1}
    return [Run(model=model, seed=seed, **common, **fields).resolved() for model in NETWORKS for seed in range(trials)]


@OF_EACH
def test_bi_real_trains_as_its_pytorch_code(
    name: str, data: str, trials: int, batch_size: int, experiment_of: Callable[[str], Any]
) -> None:
    settings: dict[str, Any] = {
        "data": data, "epochs": 256, "batch_size": 512, "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0,
        "schedule": "linear", "label_smoothing": 0.1, "init": "all_positive", "block": "bi-real",
    }  # fmt: skip
    found = runs_of(experiment_of(name), recipe="bi-real")
    assert found == expected(trials, method="bi-real", latent_gradient="clipped-unscaled", **settings)
    others = runs_of(experiment_of(name), recipe="bi-real", methods=["bihalf"])
    assert others == expected(trials, method="bihalf", **settings)


@OF_EACH
def test_xnor_plus_plus_trains_as_remembered(
    name: str, data: str, trials: int, batch_size: int, experiment_of: Callable[[str], Any]
) -> None:
    found = runs_of(experiment_of(name), recipe="xnor++")
    assert found == [
        run
        for method in ("xnor++",)
        for run in expected(
            trials, data=data, method=method, epochs=80, batch_size=batch_size, optimizer="adam", lr=1e-3,
            weight_decay=1e-5, schedule="step", milestones=(25, 50, 75), block="norm-first",
        )
    ]  # fmt: skip


@OF_EACH
def test_given_options_go_before_a_published_recipe(
    name: str, data: str, trials: int, batch_size: int, experiment_of: Callable[[str], Any]
) -> None:
    options = {"models": ["resnet18"], "data": "digits", "epochs": 2, "trials": 1, "width": 0.5, "augment": "none"}
    (run,) = runs_of(experiment_of(name), recipe="bi-real", **options)
    assert (run.model, run.data, run.epochs, run.width, run.augment) == ("resnet18", "digits", 2, 0.5, "auto")
    assert (run.schedule, run.label_smoothing, run.block) == ("linear", 0.1, "bi-real")


@pytest.mark.parametrize("recipe", ["bi-real", "xnor++"])
def test_a_small_network_trains_by_a_published_recipe(
    recipe: str, call: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    small = ["--models", "resnet18", "--data", "digits", "--image-size", "16", "--width", "0.0625", "--methods"]
    status, told = call("imagenet", "--recipe", recipe, *small, recipe, "--out", str(tmp_path))
    assert status == 0 and f"measured: resnet18 x0.0625 1/1 on digits: {recipe} " in told
    (row,) = pd.read_csv(tmp_path / "results.csv").to_dict("records")
    assert (row["status"], row["method"], row["optimizer"], row["lr"]) == ("finished", recipe, "adam", 1e-3)


@pytest.mark.parametrize("name", ["imagenet", "architectures"])
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--recipe", "bireal"], "unknown recipe 'bireal'; known: quick, paper, bi-real, xnor++"),
        (["--recipe", "bi-real", "--models", "vgg16"], "vgg16 has no block 'bi-real'; resnet18, resnet34 have"),
        (["--recipe", "xnor++", "--models", "vgg16"], "vgg16 has no block 'norm-first'; conv2, conv4, conv6, conv8, "),
        (["--recipe", "xnor++", "--activations", "real"], "block 'norm-first' is for binary activations"),
        (["--recipe", "bi-real", "--batch-size", "64"], "--batch-size"),
    ],
)
def test_what_a_recipe_cannot_be_ends_in_one_line(options: list[str], why: str, refused: Callable[..., str]) -> None:
    assert why in refused(*options)


@pytest.mark.parametrize("name", ["method_comparison", "activation_entropy"])
def test_other_experiments_have_no_published_recipes(name: str, experiment_of: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"^unknown recipe 'bi-real'; known: quick, paper$"):
        runs_of(experiment_of(name), recipe="bi-real")


@pytest.mark.parametrize("name", ["imagenet", "architectures", "method_comparison"])
def test_a_block_is_for_the_networks_with_binary_activations(name: str, experiment_of: Callable[[str], Any]) -> None:
    options = {"models": ["resnet18"], "methods": ["xnor", "xnor++", "sign"], "activations": ["real", "binary"]}
    found = runs_of(experiment_of(name), block="norm-first", trials=1, **options)
    assert {(run.activations == "real", run.block) for run in found} == {(True, ""), (False, "norm-first")}
    assert {run.block for run in runs_of(experiment_of(name), **options)} == {""}

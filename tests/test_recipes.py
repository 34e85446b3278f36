from __future__ import annotations

import pytest

from mpt_bihalf.recipes import PRUNE_SWEEP
from mpt_bihalf.sweep import PruneSweep
from mpt_bihalf.training import Run


def runs(recipe: str, **options: object) -> list[Run]:
    return PruneSweep(recipe=recipe, device="cpu", threads=1, **options).runs()  # type: ignore[arg-type]


def test_the_paper_recipe_has_the_settings_of_figure_8() -> None:
    found = runs("paper")
    assert {run.data for run in found} == {"cifar10"}
    assert {run.model for run in found} == {"conv2", "conv4", "conv6", "conv8"}
    assert {run.seed for run in found} == {0, 1, 2, 3, 4}
    assert {run.method for run in found} == {"mpt-sign", "mpt-bihalf", "sign", "bihalf"}
    shared = {
        (r.epochs, r.batch_size, r.optimizer, r.lr, r.momentum, r.weight_decay, r.schedule, r.skip, r.holdout, r.scope)
        for r in found
    }
    assert shared == {(100, 128, "sgd", 0.1, 0.9, 1e-4, "cosine", (), 0.0, "layer")}
    assert {run.precision for run in found} == {"fp32"}
    assert {run.init for run in found} == {"kaiming_normal"}


def test_the_paper_recipe_prunes_a_tenth_to_nine_tenths_and_has_the_unpruned_networks_once() -> None:
    found = runs("paper")
    for method, rates in [
        ("mpt-sign", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("mpt-bihalf", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("sign", [0.0]),
        ("bihalf", [0.0]),
    ]:
        of_one = [run.prune_rate for run in found if (run.method, run.model, run.seed) == (method, "conv6", 3)]
        assert of_one == rates
    assert len(found) == 4 * 5 * (9 + 9 + 1 + 1)


def test_the_quick_recipe_needs_no_download() -> None:
    assert {run.data for run in runs("quick")} == {"digits"}


@pytest.mark.parametrize("name", PRUNE_SWEEP)
def test_what_is_given_goes_before_the_recipe(name: str) -> None:
    found = runs(
        name,
        rates="0.3",
        models=["conv2"],
        methods=["mpt-balanced"],
        data="digits",
        epochs=7,
        trials=2,
        seed=5,
        grid=["batch_size=32", "lr=0.5"],
    )
    assert [(r.model, r.method, r.data, r.prune_rate, r.epochs, r.seed, r.batch_size, r.lr) for r in found] == [
        ("conv2", "mpt-balanced", "digits", 0.3, 7, seed, 32, 0.5) for seed in (5, 6)
    ]


def test_an_unknown_recipe_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'papr'; known: quick, paper$"):
        runs("papr")


def test_the_last_panel_of_figure_8_has_the_papers_settings_of_cifar100() -> None:
    found = runs("paper", models=["resnet18"], data="cifar100")
    assert {
        (r.model, r.data, r.epochs, r.batch_size, r.lr, r.weight_decay, r.schedule, r.milestones, r.skip) for r in found
    } == {("resnet18", "cifar100", 350, 128, 0.1, 5e-4, "step", (150, 250, 320), ("first", "last", "downsample"))}
    assert len(found) == 5 * (9 + 9 + 1 + 1)
    assert {run.epochs for run in runs("paper", models=["resnet18"], epochs=3)} == {3}
    assert {run.epochs for run in runs("paper", models=["resnet20"])} == {400}

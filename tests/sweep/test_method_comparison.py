from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpt_bihalf.sweep import EngineOptions
from mpt_bihalf.sweep.method_comparison import HOLDOUT, MethodComparison, tune, tuning_scores
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run
from mpt_bihalf.training.step import FIGURES

SERIAL = EngineOptions(engine="serial")
Score = Callable[[Run], float | None]


def comparison(**options: Any) -> MethodComparison:
    return MethodComparison(**{"device": "cpu", "threads": 1, **options})


def test_the_paper_recipe_has_the_settings_of_table_2() -> None:
    runs = comparison(recipe="paper").runs()
    assert len(runs) == 4 * 3 * 5
    assert {(run.model, run.method) for run in runs} == {
        (model, method) for model in ("conv2", "conv4", "conv6", "conv8") for method in ("sign", "irnet", "bihalf")
    }
    assert {run.seed for run in runs} == {0, 1, 2, 3, 4}
    shared = {
        (r.data, r.epochs, r.batch_size, r.optimizer, r.lr, r.momentum, r.weight_decay, r.schedule, r.skip, r.holdout)
        for r in runs
    }
    assert shared == {("cifar10", 100, 128, "sgd", 0.1, 0.9, 1e-4, "cosine", (), 0.0)}
    assert {run.scale for run in runs} == {"kaiming"}


@pytest.mark.parametrize("recipe", ["quick", "paper"])
def test_irnet_has_its_own_scale_where_asked(recipe: str) -> None:
    options = comparison(recipe=recipe, irnet_scale="power-of-two")
    for run in [*options.runs(), *options.tuning_runs()]:
        assert run.scale == ("power-of-two" if run.method == "irnet" else "kaiming")


def test_every_arm_is_tuned_by_the_same_grid() -> None:
    options = comparison(tune_lrs=[0.1, 0.3], tune_weight_decays=[0.0, 1e-4, 1e-3], tune_trials=2)
    tuning = options.tuning_runs()
    grid = {(lr, decay) for lr in (0.1, 0.3) for decay in (0.0, 1e-4, 1e-3)}
    arms = {(run.model, run.method) for run in options.runs()}
    assert len(tuning) == len(set(tuning)) == len(arms) * len(grid) * 2
    for arm in arms:
        of_arm = [run for run in tuning if (run.model, run.method) == arm]
        assert {(run.lr, run.weight_decay) for run in of_arm} == grid
        assert len({run.seed for run in of_arm}) == 2


def test_tuning_differs_from_the_trials_in_its_grid_its_seeds_and_the_images_held_out_alone() -> None:
    options = comparison(recipe="paper")
    tuning, trials = options.tuning_runs(), options.runs()
    assert {run.holdout for run in tuning} == {HOLDOUT} == {0.1}
    assert {run.holdout for run in trials} == {0.0}
    as_trials = {replace(run, lr=0.1, weight_decay=1e-4, holdout=0.0, seed=0) for run in tuning}
    assert as_trials == {replace(run, seed=0) for run in trials}


@pytest.mark.parametrize(("trials", "seed"), [(1, 0), (5, 7), (10_000, 3)])
def test_no_trial_has_a_seed_of_the_tuning(trials: int, seed: int) -> None:
    options = comparison(trials=trials, seed=seed, models=["conv2"], methods=["sign"], tune_trials=3)
    seeds = {run.seed for run in options.tuning_runs()}
    assert len(seeds) == 3
    assert not seeds & {run.seed for run in options.runs()}


def test_more_trials_leave_the_tuning_as_it_is() -> None:
    assert comparison(trials=3).tuning_runs() == comparison(trials=20).tuning_runs()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune_trials": 0}, "tune_trials must lie in 1 to 10,000, not 0"),
        ({"tune_trials": 10_001}, "tune_trials must lie in 1 to 10,000, not 10001"),
        ({"tune_lrs": [0.1, -1.0]}, "lr must be a finite number of at least 0, not -1.0"),
        ({"tune_weight_decays": [float("nan")]}, "weight_decay must be a finite number of at least 0, not nan"),
        ({"irnet_scale": "huge"}, "unknown scale 'huge'"),
    ],
)
def test_a_bad_option_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        comparison(**options).tuning_runs()


def records(*points: tuple[str, float, float | None]) -> list[dict[str, Any]]:
    """Records of one network: method, learning rate, validation accuracy or None where the run diverged."""
    return [
        {"model": "conv2", "activations": "real", "method": method, "lr": lr, "weight_decay": 1e-4}
        | ({} if top1 is None else {"validation_top1": top1})
        for method, lr, top1 in points
    ]


def chosen(found: list[dict[str, Any]]) -> dict[str, float]:
    scores = tuning_scores(found)
    return scores[scores["chosen"]].set_index("method")["lr"].to_dict()


def test_the_best_mean_of_an_arm_is_chosen() -> None:
    found = records(
        *[("sign", 0.1, 80.0), ("sign", 0.1, 90.0), ("sign", 0.3, 95.0), ("sign", 0.3, 70.0)],
        *[("bihalf", 0.1, 60.0), ("bihalf", 0.1, 60.0), ("bihalf", 0.3, 61.0), ("bihalf", 0.3, 60.0)],
    )
    scores = tuning_scores(found)
    assert scores["validation_top1"].tolist() == [85, 82.5, 60, 60.5]
    assert scores["runs"].tolist() == [2] * 4
    assert chosen(found) == {"sign": 0.1, "bihalf": 0.3}


def test_of_equal_points_the_first_is_chosen() -> None:
    assert chosen(records(("sign", 0.3, 90.0), ("sign", 0.1, 90.0))) == {"sign": 0.3}


def test_a_diverged_run_counts_as_nothing_right() -> None:
    found = records(("sign", 0.1, 50.0), ("sign", 0.1, 50.0), ("sign", 0.3, 98.0), ("sign", 0.3, None))
    assert chosen(found) == {"sign": 0.1}
    assert tuning_scores(found)["diverged"].tolist() == [0, 1]
    assert chosen(records(("sign", 0.1, None), ("sign", 0.3, None))) == {"sign": 0.1}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[[Score], list[Run]]:
    """In the place of training: the validation accuracy that a score gives; returns the list of what was trained."""

    def make(score: Score) -> list[Run]:
        done: list[Run] = []

        def train(run: Run, folder: Path, *rest: Any, **options: Any) -> dict[str, Any]:
            done.append(run)
            folder.mkdir(parents=True, exist_ok=True)
            top1 = score(run)
            result: dict[str, Any] = {"status": "diverged: NaN in layer '0' in epoch 1"}
            if top1 is not None:
                figures = dict.fromkeys(FIGURES, 50.0)
                result = {"status": "finished", "epochs": run.epochs, **figures, "validation_top1": top1}
            (folder / "result.json").write_text(json.dumps(result))
            return result

        monkeypatch.setattr("mpt_bihalf.sweep.work.train", train)
        return done

    return make


def test_trials_get_the_values_that_are_best_for_their_arm(
    tmp_path: Path, trained: Callable[[Score], list[Run]]
) -> None:
    best = {
        ("conv2", "sign"): (0.3, 1e-4),
        ("conv2", "bihalf"): (0.1, 0.0),
        ("conv4", "sign"): (0.1, 1e-4),
        ("conv4", "bihalf"): (0.3, 0.0),
    }

    def score(run: Run) -> float | None:
        if run.lr == 1.0:
            return None
        return 90.0 if (run.lr, run.weight_decay) == best[run.model, run.method] else 80.0

    done = trained(score)
    options = comparison(
        methods=["sign", "bihalf"], trials=2, tune_lrs=[1.0, 0.1, 0.3], tune_weight_decays=[0.0, 1e-4], tune_trials=1
    )
    plain = options.runs()
    runs, scores = tune(plain, options.tuning_runs(), tmp_path, SERIAL)
    assert done == options.tuning_runs()
    assert [(run.model, run.method, run.seed) for run in runs] == [(run.model, run.method, run.seed) for run in plain]
    for run in runs:
        assert (run.lr, run.weight_decay) == best[run.model, run.method]
        assert run.holdout == 0
    assert scores["chosen"].sum() == len(best)
    assert scores["diverged"].sum() == 2 * len(best)


def test_tuning_goes_on_where_it_was_left(tmp_path: Path, trained: Callable[[Score], list[Run]]) -> None:
    options = comparison(models=["conv2"], methods=["sign"], tune_lrs=[0.1, 0.3], tune_trials=2)
    done = trained(lambda run: 90.0 if run.lr == 0.3 else 80.0)
    tuning = options.tuning_runs()
    first = tune(options.runs(), tuning, tmp_path, SERIAL)
    gone = tuning[3]
    (run_folder(tmp_path, gone) / "result.json").unlink()
    done.clear()
    again = tune(options.runs(), tuning, tmp_path, SERIAL)
    assert done == [gone]
    assert again[0] == first[0]
    assert again[1].equals(first[1])

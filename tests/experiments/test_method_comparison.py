from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from mpt_bihalf import METHODS
from mpt_bihalf.experiments import method_comparison
from mpt_bihalf.experiments.method_comparison import MethodComparison
from mpt_bihalf.report.figures import OWN_COLOUR, save_figure
from mpt_bihalf.sweep import EngineOptions
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run
from mpt_bihalf.training.step import FIGURES

OPTIONS = ["--models", "conv2", "--trials", "1"]
FAST = ["--device", "cpu", "--threads", "1", *OPTIONS]
TUNED = ["--tune", "--tune-lrs", "0.1", "0.3", "--tune-weight-decays", "1e-4", "--tune-trials", "1"]
SERIAL = EngineOptions(engine="serial")
Score = Callable[[Run], float | None]
Trials = Callable[..., list[dict[str, Any]]]
Comparison = Callable[..., pd.DataFrame]

SIGN = [77.0, 77.5, 78.0]
IRNET = [78.0, 77.6, 78.1]
BIHALF = [79.0, 79.6, 80.2]


@pytest.fixture
def comparison(trials: Trials) -> Comparison:
    """Records of methods with a test top-1 for each seed, None where it diverged."""

    def make(model: str = "conv2", data: str = "cifar10", **accuracies: list[float | None]) -> pd.DataFrame:
        return pd.DataFrame(
            [
                record
                for method, values in accuracies.items()
                for record in trials(method, 0.0, values, model=model, data=data)
            ]
        )

    return make


def finding(frame: pd.DataFrame) -> str:
    return method_comparison.finding_of(method_comparison.rows_of(frame))


def test_the_finding_ranks_the_methods_and_tells_what_is_significant(comparison: Comparison) -> None:
    p_irnet = ttest_rel(IRNET, SIGN).pvalue
    assert ttest_rel(BIHALF, SIGN).pvalue < 0.001 < 0.05 < p_irnet
    told = finding(comparison(sign=SIGN, irnet=IRNET, bihalf=BIHALF))
    assert "bihalf 79.60 > irnet 77.90 > sign 77.50 %; bihalf +2.10 points on sign (significant" in told
    assert f"irnet +0.40 points on sign (not significant over 3 equal seeds, p = {p_irnet:.2g})" in told


def test_the_finding_is_reversed_with_the_records(comparison: Comparison) -> None:
    told = finding(comparison(sign=BIHALF, irnet=IRNET, bihalf=SIGN))
    assert told.startswith("conv2 on cifar10: sign 79.60 > irnet 77.90 > bihalf 77.50 %; ")
    assert "bihalf -2.10 points on sign (significant over 3 equal seeds, " in told


def test_equal_means_share_a_rank(comparison: Comparison) -> None:
    assert "bihalf 77.50 = sign 77.50 %" in finding(comparison(bihalf=[77.0, 78.0], sign=[78.0, 77.0]))


def test_one_trial_is_too_few(comparison: Comparison) -> None:
    assert finding(comparison(sign=[77.0], bihalf=[79.0])).endswith("too few to tell from chance")


def test_pairs_that_differ_alike_have_no_test(comparison: Comparison) -> None:
    told = finding(comparison(sign=SIGN, bihalf=[value + 1 for value in SIGN]))
    assert told.endswith("bihalf +1.00 points on sign in each of 3 pairs alike, without a spread to test")


def test_diverged_trials_are_told(comparison: Comparison) -> None:
    told = finding(comparison(sign=[*SIGN, 60.0], bihalf=[*BIHALF, None], irnet=[None, None, None, None]))
    assert told.startswith("conv2 on cifar10: bihalf 79.60 > sign 73.12 %; bihalf +2.10 points on sign")
    assert told.endswith("1 of 4 trainings of bihalf diverged; 4 of 4 trainings of irnet diverged")
    assert finding(comparison(sign=[None], bihalf=[None])).startswith("conv2 on cifar10: no finished trial; 1 of 1")
    assert "bihalf +" not in finding(comparison(sign=[None, None], bihalf=[79.0, 79.5]))


def test_each_network_has_its_own_ranking_in_one_line(comparison: Comparison) -> None:
    frame = pd.concat([comparison("conv2", sign=SIGN, bihalf=BIHALF), comparison("conv4", sign=BIHALF, bihalf=SIGN)])
    first, second = finding(frame).split(" | ")
    assert first.startswith("conv2 on cifar10: bihalf 79.60 > sign 77.50 %")
    assert second.startswith("conv4 on cifar10: sign 79.60 > bihalf 77.50 %")
    assert "\n" not in finding(frame)


def test_without_sign_the_first_method_is_the_reference(comparison: Comparison) -> None:
    assert "bihalf +1.70 points on irnet" in finding(comparison(irnet=IRNET, bihalf=BIHALF))


def test_a_row_has_settings_figures_tests_and_what_is_published(comparison: Comparison) -> None:
    rows = method_comparison.rows_of(comparison(sign=SIGN, irnet=IRNET, bihalf=[*BIHALF, None]))
    assert [row["method"] for row in rows] == ["sign", "irnet", "bihalf"]
    row = rows[2]
    assert {name: row[name] for name in ("model", "data", "scale", "lr", "weight_decay", "trials", "diverged")} == {
        "model": "conv2", "data": "cifar10", "scale": "kaiming", "lr": 0.1, "weight_decay": 1e-4, "trials": 3,
        "diverged": 1,
    }  # fmt: skip
    assert (row["mean"], row["std"]) == pytest.approx((79.6, 0.6))
    assert (row["difference"], row["pairs"], row["p"]) == pytest.approx((2.1, 3, ttest_rel(BIHALF, SIGN).pvalue))
    # The paper's Table 2.
    assert [(row["published"], row["published_std"]) for row in rows] == [(77.86, 0.69), (78.32, 0.25), (79.25, 0.28)]


@pytest.mark.parametrize(
    ("model", "data", "method"),
    [("conv2", "digits", "sign"), ("conv2", "cifar100", "sign"), ("conv2", "cifar10", "dense")],
)
def test_other_data_or_methods_have_nothing_published(
    model: str, data: str, method: str, comparison: Comparison
) -> None:
    (row,) = method_comparison.rows_of(comparison(model, data, **{method: [50.0, 51.0]}))
    assert isnan(row["published"]) and isnan(row["published_std"])


def test_tuned_values_are_those_of_each_arm(trials: Trials) -> None:
    frame = pd.DataFrame([*trials("sign", 0.0, SIGN, lr=0.3), *trials("bihalf", 0.0, BIHALF, weight_decay=5e-4)])
    assert [(row["lr"], row["weight_decay"]) for row in method_comparison.rows_of(frame)] == [(0.3, 1e-4), (0.1, 5e-4)]


def test_the_curves_are_accuracies_by_seed(comparison: Comparison) -> None:
    assert method_comparison.curves_of(comparison(sign=[77.0, None, 78.0], bihalf=[79.0])) == {
        "test_top1/conv2/sign": [(0, 77.0), (2, 78.0)],
        "test_top1/conv2/bihalf": [(0, 79.0)],
    }
    assert method_comparison.curves_of(comparison(sign=[None])) == {}


def bars(figure: Figure) -> list[ErrorbarContainer]:
    return [drawn for drawn in figure.axes[0].containers if isinstance(drawn, ErrorbarContainer)]


def test_networks_are_groups_of_means_with_deviations(comparison: Comparison) -> None:
    frame = pd.concat([comparison(m, "digits", sign=SIGN, bihalf=BIHALF) for m in ("conv2", "conv4")])
    figure = method_comparison.draw(frame)
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["conv2", "conv4"]
    found = {drawn.get_label(): drawn for drawn in bars(figure)}
    for method, values in (("sign", SIGN), ("bihalf", BIHALF)):
        means = found[method].lines[0].get_xydata()
        assert means[:, 1] == pytest.approx([np.mean(values)] * 2)
        assert np.round(means[:, 0]).tolist() == [0, 1]
        assert to_hex(found[method].lines[0].get_color()) == OWN_COLOUR[method].lower()
        for segment in found[method].lines[2][0].get_segments():
            assert np.ptp(segment[:, 1]) == pytest.approx(2 * np.std(values, ddof=1))
    trials = np.concatenate([drawn.get_offsets()[:, 1] for drawn in panel.collections if len(drawn.get_offsets()) == 6])
    assert sorted(trials) == sorted([*SIGN, *BIHALF] * 2)


def test_published_figures_are_hollow_and_only_where_there_are_any(comparison: Comparison) -> None:
    def hollow(figure: Figure) -> list[float]:
        marks = [drawn.lines[0] for drawn in bars(figure)]
        values = [mark.get_ydata() for mark in marks if mark.get_markerfacecolor() == "none"]
        return [float(value) for value in np.concatenate(values) if not np.isnan(value)]

    assert hollow(method_comparison.draw(comparison(sign=SIGN, bihalf=BIHALF))) == [77.86, 79.25]
    figure = method_comparison.draw(comparison("conv2", "digits", sign=SIGN, bihalf=BIHALF))
    assert hollow(figure) == []
    assert "published" not in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("accuracies", [{"sign": [77.0]}, {"sign": [None], "bihalf": [79.0, None]}, {"sign": [None]}])
def test_single_and_diverged_trials_are_drawn_too(
    accuracies: dict[str, list[float | None]], comparison: Comparison, tmp_path: Path
) -> None:
    figure = method_comparison.draw(comparison(**accuracies))
    assert all(path.exists() for path in save_figure(figure, tmp_path / "figure"))


def test_binary_networks_are_compared_with_table_3_and_others_can_be_listed(comparison: Comparison) -> None:
    frame = comparison("resnet18", "imagenet:/data", sign=[50.0], bihalf=[51.0]).assign(activations="clip", width=1.0)
    rows = method_comparison.rows_of(frame)
    # The paper's Table 3.
    assert [(row["model"], row["published"], row["published_top5"]) for row in rows] == [
        ("resnet18 1/1", 59.98, 82.47),
        ("resnet18 1/1", 60.40, 82.86),
    ]
    others = {row["method"]: row["published"] for row in method_comparison.published_elsewhere(rows)}
    assert (others["IR-Net"], others["full precision"], others["RBNN"]) == (58.1, 69.3, 59.9)
    assert "sign" not in others
    for other in (frame.assign(activations="real"), frame.assign(width=0.5)):
        assert all(isnan(row["published"]) for row in method_comparison.rows_of(other))


# As Table 3 calls each of our methods: with its ResNet-18, or of Bi-Real net ResNet-34, top-1 and top-5.
TABLE_3 = {
    "xnor": ("XNOR", "resnet18", 51.2, 73.2),
    "xnor++": ("XNOR++", "resnet18", 57.1, 79.9),
    "bnn+": ("BNN+", "resnet18", 53.0, 72.6),
    "bi-real": ("Bi-Real", "resnet34", 62.2, 83.9),
    "least-squares": ("Least-squares", "resnet18", 58.9, 81.4),
    "abc": ("ABC-Net", "resnet18", 42.7, 67.6),
    "irnet": ("IR-Net", "resnet18", 58.1, 80.0),
    "rbnn": ("RBNN", "resnet18", 59.9, 81.9),
}


@pytest.mark.parametrize("method", TABLE_3)
def test_a_published_figure_stands_beside_our_row_of_its_method_or_in_one_of_its_own(
    method: str, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also of those that are not here, or come by --plugin.
    monkeypatch.setitem(METHODS, method, METHODS.get(method, replace(METHODS["sign"], name=method)))
    theirs, model, top1, top5 = TABLE_3[method]

    def compared(*methods: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        frame = comparison(model, "imagenet:/data", **{name: [50.0] for name in methods})
        rows = method_comparison.rows_of(frame.assign(activations="clip", width=1.0))
        return rows, {row["method"]: row for row in method_comparison.published_elsewhere(rows)}

    (_, row), others = compared("bihalf", method)
    assert (row["method"], row["published"], row["published_top5"]) == (method, top1, top5)
    assert isnan(row["published_std"]) and theirs not in others and method not in others
    (_,), elsewhere = compared("bihalf")
    assert {*elsewhere} == {*others, theirs}
    own = elsewhere[theirs]
    assert (own["model"], own["published"], own["published_top5"]) == (f"{model} 1/1", top1, top5)
    assert own["published_recipe"] == row["published_recipe"]
    assert {*row} >= {*own}  # no column of its own


def test_the_recipes_of_published_figures_are_told_in_one_line(comparison: Comparison) -> None:
    frame = pd.concat(
        [
            comparison(model, "imagenet:/data", **{"bihalf": [50.0], "least-squares": [50.0], "bi-real": [50.0]})
            for model in ("resnet18", "resnet34")
        ]
    )
    rows = method_comparison.rows_of(frame.assign(activations="clip", width=1.0))
    assert [row["published_recipe"] for row in rows] == [
        "100 epochs, no teacher",
        "240 epochs, distilled from a real-valued ResNet-18",
        np.nan,
        "100 epochs, no teacher",
        np.nan,
        "three pre-trainings, then 40 epochs",
    ]
    assert method_comparison.recipes_told(rows) == (
        "recipes of the published figures: 100 epochs, no teacher (bihalf); 240 epochs, distilled from a real-valued "
        "ResNet-18 (least-squares); three pre-trainings, then 40 epochs (bi-real)"
    )
    both = [*rows, *method_comparison.published_elsewhere(rows)]
    assert "; not known: no authors' code (ABC-Net, BNN+);" in method_comparison.recipes_told(both)
    assert "100 epochs, no teacher (bihalf, sign);" in method_comparison.recipes_told(both)


def test_nothing_published_has_no_recipe(comparison: Comparison) -> None:
    rows = method_comparison.rows_of(comparison("conv2", "digits", sign=SIGN, bihalf=BIHALF))
    assert all(isnan(row["published_recipe"]) for row in rows) and method_comparison.recipes_told(rows) == ""
    rows = method_comparison.rows_of(comparison(sign=SIGN, dense=BIHALF))
    assert method_comparison.recipes_told(rows) == "recipes of the published figures: 100 epochs (sign)"


def options_of(**options: Any) -> MethodComparison:
    return MethodComparison(**{"device": "cpu", "threads": 1, **options})


@pytest.mark.parametrize("recipe", ["quick", "paper"])
def test_irnet_has_its_own_scale_where_asked(recipe: str) -> None:
    options = options_of(recipe=recipe, irnet_scale="power-of-two")
    for run in [*options.runs(), *options.tuning_runs()]:
        assert run.scale == ("power-of-two" if run.method == "irnet" else "kaiming")


def test_every_arm_is_tuned_by_the_same_grid() -> None:
    options = options_of(tune_lrs=[0.1, 0.3], tune_weight_decays=[0.0, 1e-4, 1e-3], tune_trials=2)
    tuning = options.tuning_runs()
    grid = {(lr, decay) for lr in (0.1, 0.3) for decay in (0.0, 1e-4, 1e-3)}
    arms = {(run.model, run.method) for run in options.runs()}
    assert len(tuning) == len(set(tuning)) == len(arms) * len(grid) * 2
    for arm in arms:
        of_arm = [run for run in tuning if (run.model, run.method) == arm]
        assert {(run.lr, run.weight_decay) for run in of_arm} == grid
        assert len({run.seed for run in of_arm}) == 2


def test_tuning_differs_from_the_trials_in_its_grid_its_seeds_and_the_images_held_out_alone() -> None:
    options = options_of(recipe="paper")
    tuning, trials = options.tuning_runs(), options.runs()
    assert {run.holdout for run in tuning} == {method_comparison.HOLDOUT} == {0.1}
    assert {run.holdout for run in trials} == {0.0}
    as_trials = {replace(run, lr=0.1, weight_decay=1e-4, holdout=0.0, seed=0) for run in tuning}
    assert as_trials == {replace(run, seed=0) for run in trials}


@pytest.mark.parametrize(("trials", "seed"), [(1, 0), (5, 7), (10_000, 3)])
def test_no_trial_has_a_seed_of_the_tuning(trials: int, seed: int) -> None:
    options = options_of(trials=trials, seed=seed, models=["conv2"], methods=["sign"], tune_trials=3)
    seeds = {run.seed for run in options.tuning_runs()}
    assert len(seeds) == 3
    assert not seeds & {run.seed for run in options.runs()}


def test_more_trials_leave_the_tuning_as_it_is() -> None:
    assert options_of(trials=3).tuning_runs() == options_of(trials=20).tuning_runs()


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
        options_of(**options).tuning_runs()


def records_with(*points: tuple[str, float, float | None]) -> list[dict[str, Any]]:
    """Records of one network: method, learning rate, validation accuracy or None where the run diverged."""
    return [
        {"model": "conv2", "activations": "real", "method": method, "lr": lr, "weight_decay": 1e-4}
        | ({} if top1 is None else {"validation_top1": top1})
        for method, lr, top1 in points
    ]


def chosen(found: list[dict[str, Any]]) -> dict[str, float]:
    scores = method_comparison.tuning_scores(found)
    return scores[scores["chosen"]].set_index("method")["lr"].to_dict()


def test_the_best_mean_of_an_arm_is_chosen() -> None:
    found = records_with(
        *[("sign", 0.1, 80.0), ("sign", 0.1, 90.0), ("sign", 0.3, 95.0), ("sign", 0.3, 70.0)],
        *[("bihalf", 0.1, 60.0), ("bihalf", 0.1, 60.0), ("bihalf", 0.3, 61.0), ("bihalf", 0.3, 60.0)],
    )
    scores = method_comparison.tuning_scores(found)
    assert scores["validation_top1"].tolist() == [85, 82.5, 60, 60.5]
    assert scores["runs"].tolist() == [2] * 4
    assert chosen(found) == {"sign": 0.1, "bihalf": 0.3}


def test_of_equal_points_the_first_is_chosen() -> None:
    assert chosen(records_with(("sign", 0.3, 90.0), ("sign", 0.1, 90.0))) == {"sign": 0.3}


def test_a_diverged_run_counts_as_nothing_right() -> None:
    found = records_with(("sign", 0.1, 50.0), ("sign", 0.1, 50.0), ("sign", 0.3, 98.0), ("sign", 0.3, None))
    assert chosen(found) == {"sign": 0.1}
    assert method_comparison.tuning_scores(found)["diverged"].tolist() == [0, 1]
    assert chosen(records_with(("sign", 0.1, None), ("sign", 0.3, None))) == {"sign": 0.1}


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
    options = options_of(
        methods=["sign", "bihalf"], trials=2, tune_lrs=[1.0, 0.1, 0.3], tune_weight_decays=[0.0, 1e-4], tune_trials=1
    )
    plain = options.runs()
    runs, scores = method_comparison.tune(plain, options.tuning_runs(), tmp_path, SERIAL)
    assert done == options.tuning_runs()
    assert [(run.model, run.method, run.seed) for run in runs] == [(run.model, run.method, run.seed) for run in plain]
    for run in runs:
        assert (run.lr, run.weight_decay) == best[run.model, run.method]
        assert run.holdout == 0
    assert scores["chosen"].sum() == len(best)
    assert scores["diverged"].sum() == 2 * len(best)


def test_tuning_goes_on_where_it_was_left(tmp_path: Path, trained: Callable[[Score], list[Run]]) -> None:
    options = options_of(models=["conv2"], methods=["sign"], tune_lrs=[0.1, 0.3], tune_trials=2)
    done = trained(lambda run: 90.0 if run.lr == 0.3 else 80.0)
    tuning = options.tuning_runs()
    first = method_comparison.tune(options.runs(), tuning, tmp_path, SERIAL)
    gone = tuning[3]
    (run_folder(tmp_path, gone) / "result.json").unlink()
    done.clear()
    again = method_comparison.tune(options.runs(), tuning, tmp_path, SERIAL)
    assert done == [gone]
    assert again[0] == first[0]
    assert again[1].equals(first[1])


def test_the_command_leaves_the_records_beside_the_table(done: Any) -> None:
    assert "conv2 on digits: " in done.measured() and "too few to tell from chance" in done.measured()
    assert done.table()["method"].tolist() == ["sign", "irnet", "bihalf"]
    assert set(done.table("results")["scale"]) == {"kaiming"}


def csv_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.slow
def test_a_tuned_comparison_killed_in_mid_epoch_ends_as_one_left_alone(
    tmp_path: Path,
    kill: Callable[..., Path],
    experiment: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*FAST, *TUNED, "--epochs", "3", "--methods", "bihalf"]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    killed = kill(30, out, *arguments)
    assert not (out / "tuning.csv").exists()
    assert experiment("method_comparison", *arguments, "--out", str(whole)) == 0
    assert experiment("method_comparison", *arguments, "--out", str(out)) == 0
    assert (killed / "result.json").exists()
    for name in ("tuning.csv", "results.csv", "method_comparison.csv", "method_comparison.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name

    tuning, (trial,) = csv_rows(out / "tuning.csv"), csv_rows(out / "results.csv")
    (best,) = (row for row in tuning if row["chosen"] == "True")
    assert float(best["validation_top1"]) == max(float(row["validation_top1"]) for row in tuning)
    assert (trial["lr"], trial["weight_decay"], trial["holdout"]) == (best["lr"], best["weight_decay"], "0.0")
    assert len(list((out / "runs").iterdir())) == len(tuning) + 1
    assert str(out / "tuning.csv") in capsys.readouterr().out


@pytest.mark.parametrize(
    "bad",
    ["--trials=0", "--irnet-scale=l1", "--tune-lrs=x", "--tune-lrs=-1", "--tune-trials=0", "--tune-weight-decays="],
)
def test_a_bad_option_ends_in_one_line_and_changes_nothing(bad: str, refused: Callable[..., str]) -> None:
    assert refused(*FAST, *TUNED, bad)

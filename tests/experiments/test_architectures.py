from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mpt_bihalf.training import Run

FAST = ["--device", "cpu", "--threads", "1", "--models", "conv2", "--image-size", "8", "--epochs", "1"]


def test_real_valued_and_binary_activations_stand_side_by_side(
    tmp_path: Path,
    experiment: Callable[..., int],
    rows_of: Callable[[Path], list[dict[str, str]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert experiment("architectures", *FAST, "--methods", "sign,bihalf", "--width", "1", "--out", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    (measured,) = (line for line in lines if line.startswith("measured: "))
    assert "conv2 on digits: " in measured and "conv2 1/1 on digits: " in measured
    found = [(row["model"], row["method"], row["trials"]) for row in rows_of(tmp_path / "architectures.csv")]
    networks = ("conv2", "conv2 1/1")
    assert sorted(found) == sorted((model, method, "1") for model in networks for method in ("sign", "bihalf"))
    assert {row["activations"] for row in rows_of(tmp_path / "results.csv")} == {"real", "clip"}
    for ending in (".txt", ".md", ".tex", ".png", ".pdf"):
        assert (tmp_path / f"architectures{ending}").stat().st_size > 0


def test_the_paper_recipe_is_five_architectures_twice_on_cifar100(runs_of: Callable[..., list[Run]]) -> None:
    runs = runs_of(recipe="paper")
    assert {run.model for run in runs} == {"vgg16", "resnet18", "resnet34", "inception_v3", "shufflenet"}
    assert len(runs) == 5 * 2 * 3 * 5
    assert {
        (r.data, r.epochs, r.batch_size, r.lr, r.weight_decay, r.schedule, r.milestones, r.width) for r in runs
    } == {("cifar100", 350, 128, 0.1, 5e-4, "step", (150, 250, 320), 1.0)}
    assert {(run.method, run.activations) for run in runs} == {
        ("sign", "real"), ("sign", "clip"), ("irnet", "real"), ("irnet", "ede"), ("bihalf", "real"), ("bihalf", "clip")
    }  # fmt: skip
    assert {run.skip for run in runs} == {("first", "last", "downsample")}
    assert {run.scale for run in runs if run.method == "irnet"} == {"power-of-two"}


@pytest.mark.parametrize("bad", [["--activations", "relu"], ["--models", "resnet99"], ["--models", "torchvision:x"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], refused: Callable[..., str]) -> None:
    assert refused(*bad)

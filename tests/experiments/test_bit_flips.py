from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpt_bihalf.parametrization import binary_layers
from mpt_bihalf.recipes import BIT_FLIPS
from mpt_bihalf.training import Run
from mpt_bihalf.training.build import build_network
from mpt_bihalf.weights import binary_weights

TINY = ["--device", "cpu", "--threads", "1", "--epochs", "1", "--trials", "1"]


def test_the_experiment_leaves_table_figure_and_curves_and_goes_on_where_it_was(
    tmp_path: Path, ran: Callable[..., CompletedProcess[str]], rows_of: Callable[[Path], list[dict[str, str]]]
) -> None:
    ended = ran(*TINY, "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    names = {f"bit_flips{ending}" for ending in (".csv", ".txt", ".md", ".tex", ".png", ".pdf", "_steps.csv")}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "runs", "sweeps", "curves"}

    lines = ended.stdout.splitlines()
    (measured,) = (line for line in lines if line.startswith("measured: "))
    (paper,) = (line for line in lines if line.startswith("paper: "))
    assert "first filter of layer 2 (576 weights)" in measured
    assert "bihalf flips as often to +1 as to -1 at every traced step" in measured
    assert "one trial is too little" in measured and "difference stays at zero" in paper

    rows = rows_of(tmp_path / "bit_flips.csv")
    assert [(row["method"], row["trials"]) for row in rows] == [("sign", "1"), ("irnet", "1"), ("bihalf", "1")]
    assert float(rows[2]["flips"]) > 0 and float(rows[2]["most_imbalance"]) == 0
    steps = rows_of(tmp_path / "bit_flips_steps.csv")
    assert [int(step["step"]) for step in steps] == 3 * list(range(1, 23))
    of_sign = [float(step["to_positive"]) for step in steps if step["method"] == "sign"]
    assert sum(of_sign) == float(rows[0]["to_positive"])
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    assert [point.value for point in events.Scalars("imbalance/conv2-digits-bihalf")] == [0] * 22

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    again = ran(*TINY, "--layer", "8", "--out", str(tmp_path))
    assert "3 of 3 runs are done already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == times
    assert {row["layer"] for row in rows_of(tmp_path / "bit_flips.csv")} == {"8"}


def test_the_methods_start_from_the_same_latent_weights(runs_of: Callable[..., list[Run]]) -> None:
    runs = runs_of(trials=2)
    starts = {(run.method, run.seed): start(run) for run in runs}
    assert len(starts) == 6
    for seed in (0, 1):
        for method in ("irnet", "bihalf"):
            assert all(map(torch.equal, starts[method, seed], starts["sign", seed]))
    assert not any(map(torch.equal, starts["sign", 0], starts["sign", 1]))


def test_all_methods_start_from_the_same_signs_half_of_them_plus_one(runs_of: Callable[..., list[Run]]) -> None:
    starts = [list(binary_weights(build_network(run, 10, 1, 8)).values()) for run in runs_of(trials=1)]
    assert len(starts) == 3
    for others in zip(*starts, strict=True):
        assert all(torch.equal(others[0], other) for other in others)
        rows = others[0].flatten(1)
        assert (rows > 0).sum(1).eq((rows.shape[1] + 1) // 2).all()


def start(run: Run) -> list[torch.Tensor]:
    return [weight.detach() for _, _, weight in binary_layers(build_network(run, 10, 1, 8))]


def test_the_paper_recipe_has_the_settings_of_figure_2(runs_of: Callable[..., list[Run]]) -> None:
    runs = runs_of(recipe="paper")
    assert {run.method for run in runs} == {"sign", "irnet", "bihalf"}
    assert len(runs) == 3 * 5
    settings = {(r.model, r.data, r.epochs, r.batch_size, r.optimizer, r.lr, r.momentum, r.weight_decay) for r in runs}
    assert settings == {("conv2", "cifar10", 100, 128, "sgd", 0.1, 0.9, 1e-4)}
    assert {(run.schedule, run.p_pos, run.skip, run.holdout) for run in runs} == {("cosine", 0.5, (), 0.0)}
    assert all(run.trace for run in runs)


def test_the_default_needs_no_download() -> None:
    assert BIT_FLIPS["quick"].data == "digits"


def test_a_bad_option_ends_in_one_line_and_changes_nothing(refused: Callable[..., str]) -> None:
    assert "no binarized layer '1'; it has 0, 2, " in refused(*TINY, "--layer=1")

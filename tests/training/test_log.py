from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mpt_bihalf import binarize_weights
from mpt_bihalf.data import Dataset
from mpt_bihalf.training import Run, loop, train
from mpt_bihalf.training.log import Curves, LayerLog

LAYERS = ["0", "2", "6", "8", "10"]
MEASURES = ["weights", "entropy", "filter_entropy", "positive_share", "kept", "flips_to_positive"]
MEASURES += ["flips_to_negative", "mask_change"]


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def signs_and_masks(state: dict[str, torch.Tensor], method: str, layer: str) -> np.ndarray:
    """B of a layer, worked out from its stored tensors alone; half of the weights are pruned where there are scores."""
    weight = state[f"{layer}.parametrizations.weight.original"].double().numpy()
    signs = np.where(weight >= 0, 1, -1)
    if method == "sign":
        return signs
    magnitudes = np.abs(state[f"{layer}.parametrizations.weight.0.scores"].double().numpy())
    ascending = magnitudes.argsort(axis=None, kind="stable")  # of equal ones the later is kept
    kept = np.zeros(magnitudes.size, bool)
    kept[ascending[magnitudes.size // 2 :]] = True
    kept = kept.reshape(magnitudes.shape)
    return np.where(kept, signs, 0)


@pytest.mark.parametrize("method", ["sign", "mpt-sign"])
def test_layer_figures_are_those_of_the_weights_at_the_ends_of_the_epochs(
    method: str, tmp_path: Path, small: Dataset, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(method=method, prune_rate=0.5, epochs=3, lr=0.5)
    states = [{name: value.clone() for name, value in loop.build_model(run, small).state_dict().items()}]
    save = loop.save_checkpoint

    def keep(folder: Path, of: Run, model: nn.Module, *others: object) -> None:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        save(folder, of, model, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "save_checkpoint", keep)
    train(run, tmp_path, small, progress=False)
    rows = pd.read_csv(tmp_path / "layers.csv", dtype={"layer": str}).set_index(["epoch", "layer"])
    assert list(rows.index) == [(epoch, layer) for epoch in (1, 2, 3) for layer in LAYERS]
    assert list(rows.columns) == MEASURES
    for epoch, layer in rows.index:
        before, now = (signs_and_masks(states[i], method, layer) for i in (epoch - 1, epoch))
        share = (now == 1).sum() / (now != 0).sum()
        of_filters = [[(row == 1).sum(), (row == -1).sum()] for row in now.reshape(len(now), -1)]
        expected = {
            "weights": now.size,
            "entropy": entropy([share, 1 - share], base=2),
            "filter_entropy": np.mean([entropy(counts, base=2) if sum(counts) else 0 for counts in of_filters]),
            "positive_share": share,
            "kept": np.mean(now != 0),
            "flips_to_positive": ((before == -1) & (now == 1)).sum(),
            "flips_to_negative": ((before == 1) & (now == -1)).sum(),
            "mask_change": np.mean((before == 0) != (now == 0)),
        }
        assert rows.loc[(epoch, layer)].to_dict() == pytest.approx(expected, rel=1e-5), (epoch, layer)
    changing = ["mask_change"] if method == "mpt-sign" else ["flips_to_positive", "flips_to_negative"]
    assert (rows[changing].groupby("epoch").sum() > 0).all(axis=None)


@pytest.mark.parametrize("method", ["dense", "bihalf", "mpt-bihalf"])
def test_tensorboard_has_a_point_an_epoch_of_every_figure(
    method: str, trained: Callable[..., tuple[Run, Path]]
) -> None:
    _, folder = trained(method=method, holdout=0.2, epochs=3)
    curves = curves_of(folder)
    binarized = [] if method == "dense" else LAYERS
    drawn = [measure for measure in MEASURES if measure != "weights"]
    splits = ("train", "validation", "test")
    expected = {f"{measure}/{split}" for measure in ("loss", "top1", "top5") for split in splits} | {"learning_rate"}
    expected |= {f"{measure}/{layer}" for measure in drawn for layer in binarized}
    assert set(curves) == expected
    metrics = pd.read_csv(folder / "metrics.csv").set_index("epoch")
    for name, points in curves.items():
        assert [step for step, _ in points] == [1, 2, 3], name
        measure, _, split = name.partition("/")
        if split in splits:
            assert [value for _, value in points] == pytest.approx(metrics[f"{split}_{measure}"].tolist(), rel=1e-6)
    if binarized:
        layers = pd.read_csv(folder / "layers.csv", dtype={"layer": str}).set_index(["layer", "epoch"])
        for name in expected - {"learning_rate"}:
            measure, layer = name.split("/")
            if layer in LAYERS:
                assert [value for _, value in curves[name]] == pytest.approx(layers.loc[layer, measure].tolist())


def test_learning_rate_curve_ends_with_that_of_the_last_step(trained: Callable[..., tuple[Run, Path]]) -> None:
    _, folder = trained(epochs=2, lr=0.4)
    # Four steps an epoch: the last of each is the 3rd and the 7th of 8, counted from 0.
    expected = [0.2 * (1 + np.cos(np.pi * step / 8)) for step in (3, 7)]
    assert [value for _, value in curves_of(folder)["learning_rate"]] == pytest.approx(expected, rel=1e-6)


def test_a_resumed_curve_has_each_point_once(tmp_path: Path) -> None:
    for first, last in ((1, 3), (3, 4), (2, 5)):
        curves = Curves(tmp_path, first)
        for epoch in range(first, last + 1):
            curves.add({"epoch": epoch, "test_loss": first + epoch / 10}, [], 0.1)
        curves.close()
    # The last go began at epoch 2, so only epoch 1 is of the first.
    points = curves_of(tmp_path)["loss/test"]
    assert [step for step, _ in points] == [1, 2, 3, 4, 5]
    assert [value for _, value in points] == pytest.approx([1.1, 2.2, 2.3, 2.4, 2.5])


def test_flips_are_counted_from_one_call_to_the_next() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    binarize_weights(model, "sign", seed=0)
    latent = model[0].parametrizations.weight.original

    def set_to(rows: list[list[float]]) -> None:
        with torch.no_grad():
            latent.copy_(torch.tensor(rows))

    set_to([[1, 1, 1, 1], [1, 1, 1, 1]])
    log = LayerLog(model)
    set_to([[-1, -1, -1, 1], [1, 1, 1, 1]])
    (row,) = log.measure(model, 1)
    assert (row["epoch"], row["layer"], row["flips_to_positive"], row["flips_to_negative"]) == (1, "0", 0, 3)
    assert (row["positive_share"], row["kept"], row["mask_change"]) == (5 / 8, 1, 0)
    set_to([[1, -1, -1, -1], [1, 1, 1, 1]])
    (row,) = log.measure(model, 2)
    assert (row["flips_to_positive"], row["flips_to_negative"]) == (1, 1)
    (row,) = log.measure(model, 3)
    assert (row["flips_to_positive"], row["flips_to_negative"]) == (0, 0)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy
from torch import nn

from mpt_bihalf import binarize_weights, binary_layers, binary_weights
from mpt_bihalf.data import Dataset
from mpt_bihalf.training import Run, loop, record, train
from mpt_bihalf.training.build import build_model
from mpt_bihalf.training.checkpoint import State
from mpt_bihalf.training.log import LayerLog

LAYERS = ["0", "2", "6", "8", "10"]
MEASURES = ["weights", "entropy", "filter_entropy", "positive_share", "kept", "flips_to_positive"]
MEASURES += ["flips_to_negative", "mask_change"]


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
    states = [{name: value.clone() for name, value in build_model(run, small).state_dict().items()}]
    save = record.save_checkpoint

    def keep(folder: Path, of: Run, state: State, *totals: Any) -> None:
        states.append({name: value.clone() for name, value in state.model.state_dict().items()})
        save(folder, of, state, *totals)

    monkeypatch.setattr(record, "save_checkpoint", keep)
    train(run, tmp_path, small)
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


def traced(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "trace.csv", dtype={"layer": str}).set_index(["step", "layer"])


@pytest.mark.parametrize("method", ["sign", "irnet", "bihalf", "mpt-sign"])
def test_a_trace_is_that_of_the_weights_at_each_step(
    method: str, tmp_path: Path, small: Dataset, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(method=method, prune_rate=0.5, epochs=2, lr=0.5, trace=1, scale="kaiming")
    states, gradients = [binary_weights(build_model(run, small))], []
    step_of = loop.train_step

    def keep(model: nn.Module, *others: object) -> torch.Tensor:
        totals = step_of(model, *others)  # type: ignore[arg-type]
        states.append(binary_weights(model))
        layers = {
            name: (weight.detach().clone(), part.scores, weight.grad) for name, part, weight in binary_layers(model)
        }
        gradients.append({n: (w, (g if s is None else s.grad).clone()) for n, (w, s, g) in layers.items()})
        return totals

    monkeypatch.setattr(loop, "train_step", keep)
    train(run, tmp_path, small)
    rows = traced(tmp_path)
    assert list(rows.index) == [(step, layer) for step in range(1, 9) for layer in LAYERS]
    assert rows["epoch"].tolist() == [1] * 20 + [2] * 20
    for step, layer in rows.index:
        before, now = (states[i][layer].flatten(1).numpy() for i in (step - 1, step))
        weight, gradient = (tensor.flatten(1).numpy() for tensor in gradients[step - 1][layer])
        counts = [[(row == 1).sum(), (row == -1).sum()] for row in now]
        entropies = [entropy(pair, base=2) if sum(pair) else 0 for pair in counts]
        shares = [pair[0] / sum(pair) for pair in counts if sum(pair)]
        up, down = (before == -1) & (now == 1), (before == 1) & (now == -1)
        found = rows.loc[(step, layer)]
        expected = {
            "filter_entropy": np.mean(entropies),
            "filter_entropy_std": np.std(entropies),
            "latent_magnitude": np.abs(weight).mean(),
            "gradient_magnitude": np.abs(gradient).mean(),
            "flips_to_positive": up.sum(),
            "flips_to_negative": down.sum(),
            "first_filter_to_positive": up[0].sum(),
            "first_filter_to_negative": down[0].sum(),
        }
        assert found[list(expected)].to_dict() == pytest.approx(expected, rel=1e-4, abs=1e-6), (step, layer)
        if len(shares) == len(now):
            assert [found["filter_share_lowest"], found["filter_share_highest"]] == pytest.approx(
                [min(shares), max(shares)]
            )
        if method == "bihalf":
            cuts = [
                np.sort(row)[(len(row) - 1) // 2 :][:2] if len(row) % 2 == 0 else np.sort(row)[len(row) // 2 - 1 :][:2]
                for row in weight
            ]
            assert found["cut_off"] == pytest.approx(np.abs([cut.mean() for cut in cuts]).mean(), rel=1e-4)
    assert (rows["flips_to_positive"].sum() > 0) == (method != "mpt-sign")


def test_a_sparser_trace_counts_the_same_flips_and_has_the_last_step_of_each_epoch(
    trained: Callable[..., tuple[Run, Path]],
) -> None:
    fine, coarse = (traced(trained(f"every {n}", method="sign", lr=0.5, trace=n)[1]) for n in (1, 3))
    assert sorted(set(coarse.index.get_level_values("step"))) == [3, 4, 7, 8]
    for name in ("flips_to_positive", "flips_to_negative", "first_filter_to_positive"):
        assert coarse.groupby("layer")[name].sum().equals(fine.groupby("layer")[name].sum())
    assert coarse["cut_off"].equals(fine["cut_off"][coarse.index])


def test_a_trace_does_not_change_the_training(trained: Callable[..., tuple[Run, Path]], weights_of: Callable) -> None:
    plain, watched = (weights_of(trained(f"every {n}", method="mpt-bihalf", trace=n)[1]) for n in (0, 1))
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_without_a_trace_there_is_no_file(trained: Callable[..., tuple[Run, Path]]) -> None:
    _, folder = trained()
    assert not (folder / "trace.csv").exists() and not (folder / "trace").exists()

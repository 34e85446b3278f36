from __future__ import annotations

from collections.abc import Callable
from math import log2
from typing import Any

import pandas as pd
import pytest
import torch

from mpt_bihalf.activations import BinaryActivation
from mpt_bihalf.data import evaluation_batches
from mpt_bihalf.experiments.activation_entropy import ActivationEntropy
from mpt_bihalf.sweep.records import run_folder
from mpt_bihalf.training import Run, run_data
from mpt_bihalf.training.finished import finished_model

OPTIONS = ["--models", "conv2", "--image-size", "8", "--methods", "sign,bihalf", "--trials", "2"]


def test_entropies_are_those_of_the_signs_of_the_test_images(
    done: Any, runs_of: Callable[..., list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "bits of entropy of a channel: " in done.measured()
    run, other = runs_of(models=["conv2"], methods=["bihalf"], image_size=8, epochs=1, trials=2)
    folder = run_folder(done.out, run)
    model, dataset = finished_model(run, folder, run_data.load_run_data(run))
    (x, _) = next(evaluation_batches(dataset.test, dataset, len(dataset.test)))
    signs: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, BinaryActivation):
            module.register_forward_hook(lambda module, inputs, output: signs.append(output))
    with torch.no_grad():
        model.eval()(x)
    kept = pd.read_csv(folder / "activations.csv", dtype={"layer": str})
    expected = [(s.transpose(0, 1).flatten(1) > 0).double().mean(1).tolist() for s in signs]
    assert kept["share"].tolist() == pytest.approx([share for layer in expected for share in layer])
    assert kept.groupby("layer", sort=False).size().tolist() == [8, 8, 32, 32]  # an eighth of the width
    beside = pd.read_csv(run_folder(done.out, other) / "activations.csv")
    bits = [entropy(share) for shares in (kept["share"], beside["share"]) for share in shares]
    assert done.table().set_index("method").loc["bihalf", "entropy"] == pytest.approx(sum(bits) / len(bits), rel=1e-6)

    monkeypatch.setattr(run_data, "load_dataset", lambda *arguments: pytest.fail("data are loaded though all is kept"))
    assert ActivationEntropy().outcome(done.results()).rows


def entropy(share: float) -> float:
    return -sum(p * log2(p) for p in (share, 1 - share) if p > 0)


@pytest.mark.parametrize("bad", [["--layer", "nothing"], ["--recipe", "no"], ["--trials", "0"], ["--width", "0"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], refused: Callable[..., Any]) -> None:
    assert refused(*OPTIONS, *bad)

from __future__ import annotations

import pytest

from mpt_bihalf.experiments.bit_flips import BitFlips
from mpt_bihalf.training import Run


def runs(**options: object) -> list[Run]:
    return BitFlips(**{"device": "cpu", "threads": 1, **options}).runs()  # type: ignore[arg-type]


def test_each_setting_runs_once_a_trial_and_is_traced() -> None:
    found = runs(methods=["sign", "bihalf"], trials=2, seed=3)
    assert [(run.method, run.seed) for run in found] == [("sign", 3), ("sign", 4), ("bihalf", 3), ("bihalf", 4)]
    assert all(run.trace for run in found)


@pytest.mark.parametrize("layer", ["", "0", "10"])
def test_a_layer_of_the_network_is_taken(layer: str) -> None:
    assert runs(layer=layer) == runs()


@pytest.mark.parametrize("layer", ["1", "conv", "0 ", "\n", "ü"])
def test_a_layer_that_is_none_is_told_with_those_there_are(layer: str) -> None:
    with pytest.raises(ValueError) as error:
        runs(layer=layer)
    assert str(error.value) == f"conv2 has no binarized layer {layer!r}; it has 0, 2, 6, 8, 10"


def test_a_layer_must_be_in_every_network() -> None:
    assert runs(models=["conv2", "conv4"], layer="2")
    with pytest.raises(ValueError, match=r"^conv4 has no binarized layer '6'; it has 0, 2, 5, 7, 11, 13, 15$"):
        runs(models=["conv2", "conv4"], layer="6")


def test_a_method_without_binary_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="'dense' has no binary weights"):
        runs(methods=["sign", "dense"])

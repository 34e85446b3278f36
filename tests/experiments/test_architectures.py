from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

OPTIONS = ["--models", "conv2", "--image-size", "8", "--methods", "sign,bihalf", "--width", "1"]


def test_real_valued_and_binary_activations_stand_side_by_side(done: Any) -> None:
    assert "conv2 on digits: " in done.measured() and "conv2 1/1 on digits: " in done.measured()
    found = done.table()[["model", "method", "trials"]].to_numpy().tolist()
    networks = ("conv2", "conv2 1/1")
    assert sorted(found) == [[model, method, 1] for model in networks for method in ("bihalf", "sign")]
    assert set(done.table("results")["activations"]) == {"real", "clip"}


@pytest.mark.parametrize("bad", [["--activations", "relu"], ["--models", "resnet99"], ["--models", "torchvision:x"]])
def test_a_bad_option_ends_in_one_line(bad: list[str], refused: Callable[..., str]) -> None:
    assert refused(*bad)

"""The notebook runs from top to bottom on a sweep of its own."""

from collections.abc import Callable
from typing import Any


def test_it_makes_a_small_sweep_and_compares(executed: Callable[..., Any]) -> None:
    printed, figures = executed(epochs=1)
    assert "mpt-balanced" in printed
    assert "90 %" in printed
    assert figures == 3

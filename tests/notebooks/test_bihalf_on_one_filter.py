"""The notebook finds the closed form in a solver's plan, and the ratio holds while it trains."""

import re
from collections.abc import Callable
from typing import Any


def test_the_solver_agrees_and_the_ratio_holds_at_every_step(executed: Callable[..., Any]) -> None:
    printed, figures = executed(epochs=1)
    solver, top_half, ours, sign = (
        re.search(rf"^{name} +(\[.*\])$", printed, flags=re.MULTILINE)[1]
        for name in ("solver", "top half", "binarize", "sign")
    )
    assert solver == top_half == ours != sign
    assert "D =  9, p_pos =  0.5:  5 of +1,  4 of -1, 1 divided by the solver" in printed
    assert float(re.search(r"200 filters: at most (\S+)", printed)[1]) < 1e-7
    up, down = re.search(r"bihalf flips to \+1: (\d+), to -1: (\d+)", printed).groups()
    assert up == down != "0"
    assert re.search(r"bihalf .*0\.5000 to 0\.5000; lowest mean entropy: 1\.000000", printed)
    assert not re.search(r"^sign .*0\.5000 to 0\.5000", printed, flags=re.MULTILINE)
    assert figures == 8

"""The notebook's methods do what it says of them, and take part in a sweep."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_own_methods_are_composed_as_told_and_swept_beside_their_parents(
    tmp_path: Path, executed: Callable[..., Any]
) -> None:
    printed, figures = executed(epochs=1, trials=1)

    flips = {name: int(count) for name, count in re.findall(r"^(\S+) *: +(\d+) kept weights flipped", printed, re.M)}
    assert flips["mpt-bihalf"] > 0 == flips["mpt-balanced"] == flips["mpt-fixed"]
    variances = re.findall(r"^(\S+): .* variance (\S+) to (\S+)$", printed, re.M)
    spread = {name: float(high) / float(low) for name, low, high in variances}
    assert spread["mpt-fixed-f"] < 1.2 < 2 < spread["mpt-fixed"]

    done = [folder.parent.name for folder in (tmp_path / "sweep").glob("runs/*/result.json")]
    # 5 methods at 4 rates but for one, 2 more gradients at 3 rates, 5 methods with the first layer left as it is
    assert len(done) == 19 + 6 + 5
    assert sum("-mpt-fixed-f-pruned" in name for name in done) == 5
    assert re.search(r"pruned +mpt-sign +mpt-bihalf +mpt-balanced +mpt-fixed +mpt-fixed-f$", printed, re.M)
    assert re.search(r"pruned +latent +binary +kept$", printed, re.M)
    assert figures == 2

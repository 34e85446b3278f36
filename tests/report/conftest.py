from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Record = dict[str, Any]


@pytest.fixture
def sweep(trials: Callable[..., list[Record]]) -> list[Record]:
    """Two pruned methods at two rates and two unpruned ones, three trials each."""
    return [
        *trials("mpt-sign", 0.1, [50.0, 52.0, 57.0]),
        *trials("mpt-sign", 0.5, [60.0, 61.0, 62.0]),
        *trials("mpt-bihalf", 0.1, [70.0, 70.5, 71.5]),
        *trials("mpt-bihalf", 0.5, [55.0, None, 56.0]),
        *trials("sign", 0.0, [64.0, 66.0, 71.0]),
        *trials("bihalf", 0.0, [80.0, 80.0, 83.0]),
    ]

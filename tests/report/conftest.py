from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pandas as pd
import pytest

from mpt_bihalf.training import Run

Record = dict[str, Any]


@pytest.fixture
def trials() -> Callable[..., list[Record]]:
    """Records of one setting: a trial for each accuracy, diverged where it is None."""

    def make(method: str, rate: float, accuracies: list[float | None], **fields: Any) -> list[Record]:
        records = []
        for seed, accuracy in enumerate(accuracies):
            run = Run(method=method, prune_rate=rate, seed=seed, device="cpu", threads=1, **fields)
            values = {name: " ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in asdict(run).items()}
            result = {"status": "diverged: NaN in layer '0' in epoch 1"}
            if accuracy is not None:
                result = {"status": "finished", "test_top1": accuracy, "best_epoch_test_top1": accuracy + 1}  # type: ignore[dict-item]
            records.append({"run": run.name, **values, **result})
        return records

    return make


@pytest.fixture
def measured(
    trials: Callable[..., list[Record]], request: pytest.FixtureRequest
) -> Callable[..., tuple[list[Record], pd.DataFrame]]:
    """Records and trace of methods: for each what the test file's `trace_of` takes for each of its trials."""

    def make(methods: dict[str, list[Any]]) -> tuple[list[Record], pd.DataFrame]:
        records = [record for method, runs in methods.items() for record in trials(method, 0.0, [90.0] * len(runs))]
        traces = [
            request.module.trace_of(method, seed, run)
            for method, runs in methods.items()
            for seed, run in enumerate(runs)
        ]
        return records, pd.concat(traces, ignore_index=True)

    return make


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

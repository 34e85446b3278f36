"""Settings that belong together: what an experiment takes where the command line says nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Defaults of a sweep. `run` holds further fields of each `Run`."""

    data: str
    models: tuple[str, ...]
    methods: tuple[str, ...]
    trials: int
    epochs: int
    run: dict[str, Any] = field(default_factory=dict)


PRUNE_SWEEP = {
    # Minutes, on data that needs no download.
    "quick": Recipe(
        data="digits",
        models=("conv2",),
        methods=("mpt-sign", "mpt-bihalf", "mpt-balanced"),
        trials=3,
        epochs=3,
        # One thread: as small a network gains little from a second, and the same bits come out on every machine.
        run={"batch_size": 64, "threads": 1},
    ),
    # Fig. 8 of the paper, with the unpruned binary networks beside the pruned ones.
    "paper": Recipe(
        data="cifar10",
        models=("conv2", "conv4", "conv6", "conv8"),
        methods=("mpt-sign", "mpt-bihalf", "sign", "bihalf"),
        trials=5,
        epochs=100,
        run={"batch_size": 128, "lr": 0.1, "weight_decay": 1e-4},
    ),
}

"""Settings that belong together: what an experiment takes where the command line says nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Defaults of an experiment. `run` holds further fields of each `Run`, `of_method` those of one method's, and
    `of_model` those of one network's, which go before `run` and `epochs`.

    `varied` holds the values of fields that the experiment compares.
    """

    data: str
    models: tuple[str, ...]
    methods: tuple[str, ...]
    trials: int
    epochs: int
    run: dict[str, Any] = field(default_factory=dict)
    of_method: dict[str, dict[str, Any]] = field(default_factory=dict)
    of_model: dict[str, dict[str, Any]] = field(default_factory=dict)
    varied: dict[str, tuple[Any, ...]] = field(default_factory=dict)


# Minutes on data that needs no download. One thread: as small a network gains little from a second, and its bits do not
# hang on the number of cores.
QUICK: dict[str, Any] = {"batch_size": 64, "threads": 1}
# Digits as large as CIFAR's images, which the deeper networks are made for; an eighth of the width keeps it to minutes.
SMALL = {**QUICK, "image_size": 32, "width": 0.125}
# The paper's own settings for the Conv networks, and for the deeper ones on CIFAR-100.
PAPER: dict[str, Any] = {"batch_size": 128, "lr": 0.1, "weight_decay": 1e-4}
CIFAR100: dict[str, Any] = {"epochs": 350, "weight_decay": 5e-4, "schedule": "step", "milestones": (150, 250, 320)}
DEEP = ("vgg16", "resnet18", "resnet34", "inception_v3", "shufflenet")
OF_MODEL: dict[str, dict[str, Any]] = {**{model: CIFAR100 for model in DEEP}, "resnet20": {"epochs": 400}}

FULL = ("sign", "irnet", "bihalf")
# IR-Net's own scale, 2^round(log2 m), is near 1: without batch norm activations then grow by sqrt(D / 2) a layer, and
# Conv2 learns little. With the Kaiming scale all three methods differ in their signs and gradients alone.
OF_METHOD: dict[str, dict[str, Any]] = {"irnet": {"scale": "kaiming"}}

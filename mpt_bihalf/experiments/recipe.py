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

# As Bi-Real net's PyTorch code trains, but for its rate, which falls by epochs there, and its jitter of colours. It
# clips g, not alpha g.
BI_REAL: dict[str, Any] = {
    "batch_size": 512,
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "linear",
    "label_smoothing": 0.1,
    "init": "all_positive",
    "block": "bi-real",
}
OF_BI_REAL: dict[str, dict[str, Any]] = {"bi-real": {"latent_gradient": "clipped-unscaled"}}
# As XNOR-Net++'s paper is remembered to train; there is no code of its authors. Its batch size is not known.
XNOR_PLUS_PLUS: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 1e-5,
    "schedule": "step",
    "milestones": (25, 50, 75),
    "block": "norm-first",
}


def published_recipes(data: str, trials: int, batch_size: int) -> dict[str, Recipe]:
    """By name, the recipes of compared systems that have no teacher, for their 1/1 networks on these data.

    batch_size: where a recipe's own is not known.
    """
    networks, varied = ("resnet18", "resnet34"), {"activations": ("binary",)}
    xnor_plus_plus = {**XNOR_PLUS_PLUS, "batch_size": batch_size}
    return {
        "bi-real": Recipe(data, networks, ("bi-real",), trials, 256, BI_REAL, OF_BI_REAL, varied=varied),
        "xnor++": Recipe(data, networks, ("xnor++",), trials, 80, xnor_plus_plus, varied=varied),
    }

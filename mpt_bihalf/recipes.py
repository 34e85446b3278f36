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


# The paper's settings of its deeper networks.
_CIFAR100 = {"epochs": 350, "weight_decay": 5e-4, "schedule": "step", "milestones": (150, 250, 320)}
_DEEP = ("vgg16", "resnet18", "resnet34", "inception_v3", "shufflenet")
_OF_MODEL: dict[str, dict[str, Any]] = {**{model: _CIFAR100 for model in _DEEP}, "resnet20": {"epochs": 400}}

PRUNE_SWEEP = {
    # Minutes, on data that needs no download.
    "quick": Recipe(
        data="digits",
        models=("conv2",),
        methods=("mpt-sign", "mpt-bihalf", "mpt-balanced"),
        trials=3,
        epochs=3,
        # One thread: as small a network gains little from a second, and its bits do not hang on the number of cores.
        run={"batch_size": 64, "threads": 1},
    ),
    # Fig. 8 of the paper, with the unpruned binary networks beside the pruned ones. Its last panel is that of
    # `--models resnet18 --data cifar100`.
    "paper": Recipe(
        data="cifar10",
        models=("conv2", "conv4", "conv6", "conv8"),
        methods=("mpt-sign", "mpt-bihalf", "sign", "bihalf"),
        trials=5,
        epochs=100,
        run={"batch_size": 128, "lr": 0.1, "weight_decay": 1e-4},
        of_model=_OF_MODEL,
    ),
}

# Minutes on data that needs no download, and the paper's own settings for the Conv networks.
_QUICK = {"batch_size": 64, "threads": 1}
_PAPER = {"batch_size": 128, "lr": 0.1, "weight_decay": 1e-4}
_FULL = ("sign", "irnet", "bihalf")
# IR-Net's own scale, 2^round(log2 m), is near 1: without batch norm activations then grow by sqrt(D / 2) a layer, and
# Conv2 learns little. With the Kaiming scale all three methods differ in their signs and gradients alone.
_OF_METHOD = {"irnet": {"scale": "kaiming"}}

# Fig. 1a: the entropy of the weights while training.
WEIGHT_ENTROPY = {
    "quick": Recipe("digits", ("conv2",), _FULL, 3, 5, {**_QUICK, "trace": 2}, _OF_METHOD),
    "paper": Recipe("cifar10", ("conv2",), _FULL, 5, 100, {**_PAPER, "trace": 100}, _OF_METHOD),
}
# Fig. 2: the bit flips of one filter, all methods from the same signs, half of them +1.
BIT_FLIPS = {
    "quick": Recipe("digits", ("conv2",), _FULL, 3, 5, {**_QUICK, "trace": 1, "init": "equal_bits"}, _OF_METHOD),
    "paper": Recipe("cifar10", ("conv2",), _FULL, 5, 100, {**_PAPER, "trace": 50, "init": "equal_bits"}, _OF_METHOD),
}
# Fig. 3: what weight decay and a decaying learning rate do. In 200 steps weight decay shows only where it is strong.
DECAY = {
    "quick": Recipe(
        "digits", ("conv2",), ("bihalf",), 3, 10, {**_QUICK, "trace": 5}, varied={"weight_decay": (0.0, 1e-3, 1e-2)}
    ),
    "paper": Recipe(
        "cifar10", ("conv2",), ("bihalf",), 5, 100, {**_PAPER, "trace": 100}, varied={"weight_decay": (0.0, 1e-4, 5e-4)}
    ),
}
# Fig. 4: many trainings of two methods.
REPEATED_TRAININGS = {
    "quick": Recipe("digits", ("conv2",), ("sign", "bihalf"), 20, 3, _QUICK),
    "paper": Recipe("cifar10", ("conv2",), ("sign", "bihalf"), 100, 100, _PAPER),
}
# Fig. 5: accuracy against the share of +1.
BIT_RATIO = {
    "quick": Recipe("digits", ("conv2",), ("bihalf", "sign", "irnet"), 3, 3, {**_QUICK, "trace": 1}, _OF_METHOD),
    "paper": Recipe(
        "cifar10",
        ("conv2",),
        ("bihalf", "sign", "irnet"),
        5,
        100,
        {**_PAPER, "trace": 100},
        _OF_METHOD,
        varied={"data": ("cifar10", "cifar100")},
    ),
}
# Table 2: networks and methods.
METHOD_COMPARISON = {
    "quick": Recipe("digits", ("conv2", "conv4"), _FULL, 5, 4, _QUICK, _OF_METHOD),
    "paper": Recipe("cifar10", ("conv2", "conv4", "conv6", "conv8"), _FULL, 5, 100, _PAPER, _OF_METHOD, _OF_MODEL),
}
# Digits as large as CIFAR's images, which the deeper networks are made for; an eighth of the width keeps it to minutes.
_SMALL = {**_QUICK, "image_size": 32, "width": 0.125}
_BOTH = {"activations": ("real", "binary")}
# Fig. 7: five architectures, with real-valued and with binary activations. All have batch norm, so that IR-Net can keep
# its own scale.
ARCHITECTURES = {
    # Inception's many small branches take half of the time.
    "quick": Recipe("digits", _DEEP, _FULL, 1, 3, _SMALL, of_model={"inception_v3": {"width": 0.0625}}, varied=_BOTH),
    "paper": Recipe("cifar100", _DEEP, _FULL, 5, 350, {**_PAPER, **_CIFAR100}, varied=_BOTH),
}
# Table 3: 1/1 on ImageNet.
IMAGENET = {
    "quick": Recipe("digits", ("resnet18", "resnet34"), _FULL, 1, 3, _SMALL, varied={"activations": ("binary",)}),
    "paper": Recipe(
        "imagenet",
        ("resnet18", "resnet34"),
        ("sign", "bihalf"),
        1,
        100,
        {"batch_size": 256, "lr": 0.1, "weight_decay": 1e-4, "schedule": "step", "milestones": (30, 60, 90)},
        varied={"activations": ("binary",)},
    ),
}
# Fig. 1b: the entropy of binary activations.
ACTIVATION_ENTROPY = {
    "quick": Recipe("digits", ("resnet18",), _FULL, 3, 5, {**_SMALL, "activations": "binary"}),
    "paper": Recipe("cifar100", ("resnet18",), _FULL, 5, 350, {**_PAPER, **_CIFAR100, "activations": "binary"}),
}
# What learning a mask brings over a random one of the same count.
MASK_CONTROLS = {
    "quick": Recipe("digits", ("conv2",), ("mpt-sign", "mpt-bihalf", "mpt-balanced"), 3, 3, _QUICK),
    "paper": Recipe("cifar10", ("conv2",), ("mpt-sign", "mpt-bihalf", "mpt-balanced"), 5, 100, _PAPER),
}

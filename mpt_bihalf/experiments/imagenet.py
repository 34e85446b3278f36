"""Accuracy on ImageNet, W/A 1/1, beside the published figures of other methods (Table 3)."""

from dataclasses import dataclass
from typing import ClassVar

from ..endings import run_command
from .method_comparison import MethodComparison
from .recipe import FULL, PAPER, SMALL, Recipe, published_recipes

BINARY = {"activations": ("binary",)}
OF_IMAGENET = {"batch_size": 256, "schedule": "step", "milestones": (30, 60, 90)}


@dataclass(frozen=True, kw_only=True)
class Imagenet(MethodComparison):
    """Networks x methods, weights and activations binary. An option that is not given takes the recipe's value."""

    name = "imagenet"
    about = "Compare methods with binary weights and activations, beside the published accuracies."
    claim = (
        "on ImageNet, weights and activations binary, bi-half has 60.40 % top-1 and 82.86 % top-5 with ResNet-18 (sign "
        "59.98 and 82.47 %), 64.17 and 85.36 % with ResNet-34"
    )
    recipes: ClassVar = {
        "quick": Recipe("digits", ("resnet18", "resnet34"), FULL, 1, 3, SMALL, varied=BINARY),
        "paper": Recipe(
            "imagenet",
            ("resnet18", "resnet34"),
            ("sign", "bihalf"),
            1,
            100,
            {**PAPER, **OF_IMAGENET},
            varied=BINARY,
        ),
        **published_recipes("imagenet", trials=1, batch_size=256),
    }
    lists_others = True

    recipe: str = "quick"
    """quick: minutes on the embedded data; paper: the paper's own settings; bi-real: those of Bi-Real net's PyTorch
    code, and xnor++: of XNOR-Net++ as remembered, both for ResNet-18 and -34 with binary activations"""
    out: str = "runs/imagenet"
    """folder for runs, results.csv (a row a run), tables, figure and curves"""


if __name__ == "__main__":
    run_command(Imagenet.main)

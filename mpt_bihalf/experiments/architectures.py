"""Accuracy of each method on five architectures, W/A 1/32 and 1/1 (Fig. 7)."""

from dataclasses import dataclass
from typing import ClassVar

from ..endings import run_command
from .method_comparison import MethodComparison
from .recipe import CIFAR100, DEEP, FULL, PAPER, SMALL, Recipe, published_recipes

BOTH = {"activations": ("real", "binary")}


@dataclass(frozen=True, kw_only=True)
class Architectures(MethodComparison):
    """Networks x activations x methods. An option that is not given takes the recipe's value."""

    name = "architectures"
    about = "Compare methods on five architectures, with real-valued and binary activations."
    claim = (
        "on CIFAR-100 bi-half is slightly more accurate than sign and IR-Net on five architectures, with real-valued "
        "and with binary activations, above all on VGG16, and never less accurate"
    )
    # All have batch norm, so that IR-Net can keep its own scale. Inception's many small branches take half of the time.
    recipes: ClassVar = {
        "quick": Recipe("digits", DEEP, FULL, 1, 3, SMALL, of_model={"inception_v3": {"width": 0.0625}}, varied=BOTH),
        "paper": Recipe("cifar100", DEEP, FULL, 5, 350, {**PAPER, **CIFAR100}, varied=BOTH),
        **published_recipes("cifar100", trials=5, batch_size=128),
    }

    recipe: str = "quick"
    """quick: minutes on the embedded data; paper: the paper's own settings; bi-real: those of Bi-Real net's PyTorch
    code, and xnor++: of XNOR-Net++ as remembered, both for ResNet-18 and -34 with binary activations"""
    out: str = "runs/architectures"
    """folder for runs, results.csv (a row a run), tables, figure and curves"""


if __name__ == "__main__":
    run_command(Architectures.main)

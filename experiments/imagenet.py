"""Accuracy on ImageNet, W/A 1/1 (Table 3): python experiments/imagenet.py --recipe paper --data imagenet:PATH"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass

    from mpt_bihalf.commandline import parse
    from mpt_bihalf.recipes import IMAGENET
    from mpt_bihalf.report.method_comparison import IMAGENET_CLAIM, conclude_comparison
    from mpt_bihalf.sweep.method_comparison import MethodComparison, compare_methods


@dataclass(frozen=True, kw_only=True)
class Imagenet(MethodComparison):
    """Networks x methods, weights and activations binary. An option that is not given takes the recipe's value."""

    recipes = IMAGENET

    out: str = "runs/imagenet"
    """folder for runs, results.csv (a row a run), tables, figure and curves"""


def main() -> None:
    options = parse(Imagenet, "Compare methods with binary weights and activations, beside the published accuracies.")
    out, records = compare_methods(options)
    conclude_comparison(out, "imagenet", records, IMAGENET_CLAIM, others=True)


if __name__ == "__main__":
    run_command(main)

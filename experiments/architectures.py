"""Accuracy of each method on five architectures, W/A 1/32 and 1/1 (Fig. 7): python experiments/architectures.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass

    from mpt_bihalf.commandline import parse
    from mpt_bihalf.recipes import ARCHITECTURES
    from mpt_bihalf.report.method_comparison import ARCHITECTURES_CLAIM, conclude_comparison
    from mpt_bihalf.sweep.method_comparison import MethodComparison, compare_methods


@dataclass(frozen=True, kw_only=True)
class Architectures(MethodComparison):
    """Networks x activations x methods. An option that is not given takes the recipe's value."""

    recipes = ARCHITECTURES

    out: str = "runs/architectures"
    """folder for runs, results.csv (a row a run), tables, figure and curves"""


def main() -> None:
    options = parse(Architectures, "Compare methods on five architectures, with real-valued and binary activations.")
    out, records = compare_methods(options)
    conclude_comparison(out, "architectures", records, ARCHITECTURES_CLAIM)


if __name__ == "__main__":
    run_command(main)

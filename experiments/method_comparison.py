"""Accuracy of each method on each network (Table 2): python experiments/method_comparison.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.commandline import parse
    from mpt_bihalf.report.method_comparison import CLAIM, conclude_comparison
    from mpt_bihalf.sweep.method_comparison import MethodComparison, compare_methods


def main() -> None:
    options = parse(MethodComparison, "Compare methods on several networks, beside the published accuracies.")
    out, records = compare_methods(options)
    conclude_comparison(out, "method_comparison", records, CLAIM)


if __name__ == "__main__":
    run_command(main)

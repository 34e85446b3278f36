"""Accuracy of each method on each network (Table 2): python experiments/method_comparison.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.method_comparison import MethodComparison

if __name__ == "__main__":
    run_command(MethodComparison.main)

"""Accuracy against the share of +1 among the weights (Fig. 5): python experiments/bit_ratio.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.bit_ratio import BitRatio

if __name__ == "__main__":
    run_command(BitRatio.main)

"""Accuracy against the fraction of pruned weights (Fig. 8): python experiments/prune_sweep.py --rates 0.1..0.9"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.prune_sweep import PruneSweep

if __name__ == "__main__":
    run_command(PruneSweep.main)

"""The entropy of binary weights while training (Fig. 1a): python experiments/weight_entropy.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.weight_entropy import WeightEntropy

if __name__ == "__main__":
    run_command(WeightEntropy.main)

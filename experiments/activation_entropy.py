"""The entropy of each channel's activations in a 1/1 network (Fig. 1b): python experiments/activation_entropy.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.activation_entropy import ActivationEntropy

if __name__ == "__main__":
    run_command(ActivationEntropy.main)

"""How the variance of activations goes through the layers, before and after training, of the runs of a sweep:
python experiments/activation_variance.py --out runs/prune_sweep
"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.activation_variance import ActivationVariance

if __name__ == "__main__":
    run_command(ActivationVariance.main)

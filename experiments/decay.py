"""What weight decay and learning-rate decay do to latent weights and flips (Fig. 3): python experiments/decay.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.decay import Decay

if __name__ == "__main__":
    run_command(Decay.main)

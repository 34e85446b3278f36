"""Accuracy of each method on five architectures, W/A 1/32 and 1/1 (Fig. 7): python experiments/architectures.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.architectures import Architectures

if __name__ == "__main__":
    run_command(Architectures.main)

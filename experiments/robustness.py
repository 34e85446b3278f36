"""Finished runs on corrupted test images: python experiments/robustness.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.robustness import Robustness

if __name__ == "__main__":
    run_command(Robustness.main)

"""Losses and accuracies over many trainings (Fig. 4): python experiments/repeated_trainings.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.repeated_trainings import RepeatedTrainings

if __name__ == "__main__":
    run_command(RepeatedTrainings.main)

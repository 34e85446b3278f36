"""What learning a mask brings over a random or a shuffled one: python experiments/mask_controls.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.mask_controls import MaskControls

if __name__ == "__main__":
    run_command(MaskControls.main)

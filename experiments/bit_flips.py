"""Bit flips of one filter while training (Fig. 2): python experiments/bit_flips.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.bit_flips import BitFlips

if __name__ == "__main__":
    run_command(BitFlips.main)

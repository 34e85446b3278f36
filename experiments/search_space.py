"""All binary weights of a small network and the boundaries they draw (Fig. 6): python experiments/search_space.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from mpt_bihalf.experiments.search_space import Enumeration

if __name__ == "__main__":
    run_command(Enumeration.main)

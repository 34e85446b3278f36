"""One file an experiment: its options, recipes, table, figure, curves, claim and finding."""

import sys
from contextlib import nullcontext

from ..endings import starting

# Python looks for `-m mpt_bihalf.experiments.NAME`: what this imports takes seconds, in which a command must be able to
# end in one line. Of a program that imports us, matplotlib and the signals stay its own.
with starting("__main__") if sys.argv[:1] == ["-m"] else nullcontext():
    from .experiment import Experiment, TrainingExperiment
    from .grid import Grid, parse_rates
    from .recipe import Recipe
    from .results import Results

__all__ = ["Experiment", "Grid", "Recipe", "Results", "TrainingExperiment", "parse_rates"]

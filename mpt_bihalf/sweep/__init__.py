"""A grid of runs, an engine that does them, the records they leave."""

from .engine import run_all
from .experiment import Experiment
from .prune import PruneSweep, parse_rates
from .records import find_runs, read_layers, read_records, read_trace, write_results
from .traced import TracedExperiment

__all__ = [
    "Experiment",
    "PruneSweep",
    "TracedExperiment",
    "find_runs",
    "parse_rates",
    "read_layers",
    "read_records",
    "read_trace",
    "run_all",
    "write_results",
]

"""A grid of runs, an engine that does them, the records they leave."""

from .engines import EngineOptions
from .experiment import Experiment
from .prune import PruneSweep, parse_rates
from .records import find_runs, having, noted, read_layers, read_records, read_trace, write_results
from .run_all import RunsFailed, run_all
from .traced import TracedExperiment

__all__ = [
    "EngineOptions",
    "Experiment",
    "PruneSweep",
    "RunsFailed",
    "TracedExperiment",
    "find_runs",
    "having",
    "noted",
    "parse_rates",
    "read_layers",
    "read_records",
    "read_trace",
    "run_all",
    "write_results",
]

"""A grid of runs, an engine that does them, the records they leave."""

from .engine import run_all
from .prune import PruneSweep, parse_rates
from .records import find_runs, read_layers, read_records, write_results

__all__ = ["PruneSweep", "find_runs", "parse_rates", "read_layers", "read_records", "run_all", "write_results"]

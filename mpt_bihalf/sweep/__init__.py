"""Runs, an engine that does them, the records they leave."""

from .done import load_run, runs
from .engines import EngineOptions
from .records import find_runs, having, noted, read_layers, read_records, read_trace, write_results
from .run_all import RunsFailed, run_all
from .work import Outcome, perform

__all__ = [
    "EngineOptions",
    "Outcome",
    "RunsFailed",
    "find_runs",
    "having",
    "load_run",
    "noted",
    "perform",
    "read_layers",
    "read_records",
    "read_trace",
    "run_all",
    "runs",
    "write_results",
]

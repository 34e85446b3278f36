"""Runs, an engine that does them, the records they leave."""

from .engines import EngineOptions
from .records import find_runs, having, noted, read_layers, read_records, read_trace, write_results
from .run_all import RunsFailed, run_all

__all__ = [
    "EngineOptions",
    "RunsFailed",
    "find_runs",
    "having",
    "noted",
    "read_layers",
    "read_records",
    "read_trace",
    "run_all",
    "write_results",
]

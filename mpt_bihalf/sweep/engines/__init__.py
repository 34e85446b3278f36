"""Engines: where the runs of a sweep are done."""

from __future__ import annotations

from pathlib import Path

from ...distributed import launched
from ...training import Run
from .engine import Engine, EngineOptions, Event
from .local import LocalEngine
from .on_ray import RayEngine
from .serial import SerialEngine

ENGINES: dict[str, type[Engine]] = {"local": LocalEngine, "ray": RayEngine, "serial": SerialEngine}

__all__ = ["ENGINES", "Engine", "EngineOptions", "Event", "make_engine"]


def make_engine(out: Path, runs: list[Run], options: EngineOptions) -> Engine:
    """The engine that the options name, for these runs. ValueError for options that cannot be."""
    check_engine(options)
    return ENGINES[options.chosen](out.absolute(), runs, options)


def check_engine(options: EngineOptions) -> None:
    """ValueError, naming the option at fault, for options that no engine takes."""
    if options.chosen not in ENGINES:
        raise ValueError(f"unknown engine {options.engine!r}; known: {', '.join(ENGINES)}")
    for name in ("jobs", "runs_per_device"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= 1024:
            raise ValueError(f"{name.replace('_', '-')} must lie in 1 to 1024, not {value}")
    if launched().processes > 1 and (options.chosen != "serial" or (options.jobs or 1) * options.runs_per_device > 1):
        raise ValueError("torchrun's processes do one run at a time, together: leave out --engine, --jobs and the like")
    if options.address and options.engine != "ray":
        raise ValueError("--address is that of a Ray cluster: give --engine ray with it")

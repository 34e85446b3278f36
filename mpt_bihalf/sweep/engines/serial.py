"""Runs in this very process, one after the other."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from ...training import Run
from ..order import Order
from ..work import perform
from .engine import Engine, EngineOptions, Event


class SerialEngine(Engine):
    """One run at a time."""

    def __init__(self, out: Path, runs: list[Run], options: EngineOptions) -> None:
        if options.jobs not in (None, 1):
            raise ValueError(f"the serial engine does one run at a time, not {options.jobs} jobs; take --engine local")
        self._out = out

    def do(self, runs: list[Run]) -> Generator[Event]:
        order = Order(runs, self._out)
        while (run := order.take()) is not None:
            yield from order.end(perform(run, self._out, [self.told]))

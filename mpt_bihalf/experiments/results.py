"""What the runs of an experiment have left, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from torch import nn
from tqdm import tqdm

from ..data import Dataset
from ..endings import tell
from ..sweep.records import read_layers, read_records, read_trace, run_folder
from ..training import Run
from ..training.finished import finished_model
from ..training.log import FINISHED
from ..training.recorded_data import OtherData
from ..training.run_data import kept_data, load_run_data

Found = TypeVar("Found")


class Results:
    """Records, traces, layers and networks of `runs` below the folder `out`."""

    def __init__(self, out: Path, runs: list[Run]) -> None:
        self.out, self.runs = out, runs

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """As `read_records` has them."""
        return read_records(self.out, self.runs)

    @cached_property
    def trace(self) -> pd.DataFrame:
        """As `read_trace` has it."""
        return read_trace(self.out, self.runs)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """As `read_layers` has them."""
        return read_layers(self.out, self.runs)

    @cached_property
    def data(self) -> Dataset:
        """The data that all runs are of."""
        return load_run_data(self.runs[0])

    @cached_property
    def finished(self) -> list[Run]:
        """The runs that did not diverge."""
        names = {record["run"] for record in self.records if record["status"] == FINISHED}
        return [run for run in self.runs if run_folder(self.out, run).name in names]

    def model(self, run: Run) -> tuple[nn.Module, Dataset]:
        """The network of a finished run, and its data, as `finished_model` has them."""
        return finished_model(run, run_folder(self.out, run), kept_data(run))

    def network(self, run: Run) -> tuple[nn.Module, Dataset] | None:
        """As `model`; None, of which the user is told, where the run's checkpoint is not there any more."""
        try:
            return self.model(run)
        except OtherData:
            raise
        except ValueError as fault:
            tell(f"missing: {fault}")
            return None

    def look_again(
        self, measure: Callable[[Run, Path, Callable[[], Dataset]], Found], runs: list[Run], told: str
    ) -> dict[str, Found]:
        """What `measure` finds in each of these finished runs, by the name of the run's folder.

        measure: of (run, folder, what gives the data where they are needed). told: what the bar is of.
        """
        bar = tqdm(runs, desc=told, unit="run", disable=None)
        folders = ((run, run_folder(self.out, run)) for run in bar)
        return {folder.name: measure(run, folder, lambda: self.data) for run, folder in folders}

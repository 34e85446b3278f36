"""Experiments that look into the layers of a network while it trains."""

from dataclasses import dataclass

from ..parametrization import binary_layers
from ..training import Run
from ..training.build import check_network
from ..training.record import TRACE
from .experiment import TrainingExperiment


@dataclass(frozen=True, kw_only=True)
class TracedExperiment(TrainingExperiment):
    """Runs of methods with binary weights. An option that is not given takes the recipe's value."""

    needs = (TRACE,)
    binary = True

    layer: str = ""
    """the binarized layer to look at, by name"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        runs = self.runs_of()
        for run in {run.model: run for run in runs if self.layer}.values():
            layers = [name for name, *_ in binary_layers(check_network(run))]
            if self.layer not in layers:
                raise ValueError(f"{run.model} has no binarized layer {self.layer!r}; it has {', '.join(layers)}")
        return runs

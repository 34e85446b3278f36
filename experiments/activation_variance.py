"""How the variance of activations goes through the layers, before and after training, of the runs of a sweep:
python experiments/activation_variance.py --out runs/prune_sweep
"""

from mpt_bihalf.endings import run_command, show, starting, tell

with starting(__name__):
    from dataclasses import dataclass
    from math import nan
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn
    from tqdm import tqdm

    from mpt_bihalf import binary_layers
    from mpt_bihalf.commandline import parse
    from mpt_bihalf.data import Dataset
    from mpt_bihalf.report.outcome import write_table
    from mpt_bihalf.sweep import find_runs
    from mpt_bihalf.sweep.records import read_result, run_folder
    from mpt_bihalf.training import Run
    from mpt_bihalf.training.build import build_model
    from mpt_bihalf.training.finished import evaluate_test, finished_model
    from mpt_bihalf.training.record import FINISHED
    from mpt_bihalf.training.recorded_data import OtherData
    from mpt_bihalf.training.run_data import kept_data


@dataclass(frozen=True, kw_only=True)
class ActivationVariance:
    """Which runs to look at."""

    out: str = "runs/prune_sweep"
    """folder of a sweep whose finished runs have their checkpoints still; the table goes there too"""


class Variance:
    """A hook: the variance of all that a module has given, over images, channels and positions."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.double()
        self.count += values.numel()
        self.sum += values.sum().item()
        self.squares += values.square().sum().item()

    def value(self) -> float:
        return self.squares / self.count - (self.sum / self.count) ** 2


def layer_variances(model: nn.Module, dataset: Dataset) -> dict[str, float]:
    """The variance of what each binarized layer gives, ahead of any activation, over the test images."""
    variances = {name: Variance() for name, *_ in binary_layers(model)}
    hooks = [model.get_submodule(name).register_forward_hook(variance) for name, variance in variances.items()]
    evaluate_test(model, dataset)
    for hook in hooks:
        hook.remove()
    return {name: variance.value() for name, variance in variances.items()}


def row(run: Run, when: str, variances: dict[str, float]) -> dict[str, Any]:
    """`a layer` is the factor from one layer to the next: the geometric mean from the first to the last."""
    setting = {name: getattr(run, name) for name in ("method", "scale", "scope", "prune_rate", "lr", "seed")}
    values = list(variances.values())
    factor = (values[-1] / values[0]) ** (1 / (len(values) - 1)) if len(values) > 1 and values[0] else nan
    return {**setting, "when": when, "a layer": factor, **variances}


def main() -> None:
    options = parse(ActivationVariance, "Variance of each binary layer's output, before and after training.")
    out = Path(options.out)
    runs = [run for run in find_runs(out) if (read_result(run_folder(out, run), run) or {}).get("status") == FINISHED]
    if not runs:
        raise ValueError(f"no finished run lies in {options.out}")
    rows, missing = [], []
    for run in tqdm(runs, unit="run", disable=None):
        try:
            model, dataset = finished_model(run, run_folder(out, run), kept_data(run))
        except OtherData:
            raise
        except ValueError as fault:
            missing.append(str(fault))
            continue
        start = build_model(run, dataset).to(dataset.device)
        rows.append(row(run, "start", layer_variances(start, dataset)))
        rows.append(row(run, "end", layer_variances(model, dataset)))
    for fault in missing:
        tell(f"missing: {fault}")
    if not rows:
        raise ValueError(f"no finished run in {options.out} has its checkpoint still")
    show(write_table(out / "activation_variance", rows))
    show(f"\ntable: {out / 'activation_variance'}.csv, .txt, .md, .tex")


if __name__ == "__main__":
    run_command(main)

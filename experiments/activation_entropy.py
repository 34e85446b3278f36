"""The entropy of each channel's activations in a 1/1 network (Fig. 1b): python experiments/activation_entropy.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass
    from functools import cache

    from tqdm import tqdm

    from mpt_bihalf.activations import BinaryActivation
    from mpt_bihalf.commandline import parse
    from mpt_bihalf.files import output_folder
    from mpt_bihalf.recipes import ACTIVATION_ENTROPY
    from mpt_bihalf.report.activation_entropy import (
        CLAIM,
        activation_entropy_channels,
        activation_entropy_curves,
        activation_entropy_finding,
        activation_entropy_rows,
        draw_activation_entropy,
    )
    from mpt_bihalf.report.outcome import conclude
    from mpt_bihalf.sweep import Experiment, read_records, run_all, write_results
    from mpt_bihalf.sweep.records import run_folder
    from mpt_bihalf.training import Run
    from mpt_bihalf.training.build import check_network
    from mpt_bihalf.training.finished import activation_shares
    from mpt_bihalf.training.record import ACTIVATIONS, FINISHED
    from mpt_bihalf.training.run_data import load_run_data


@dataclass(frozen=True, kw_only=True)
class ActivationEntropy(Experiment):
    """Trainings with binary activations. An option that is not given takes the recipe's value."""

    recipes = ACTIVATION_ENTROPY

    layer: str = ""
    """one binary activation to look at, by name (default: all)"""
    out: str = "runs/activation_entropy"
    """folder for runs, results.csv, table, figure and curves"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""

        runs = self.runs_of()
        for run in {run.model: run for run in runs}.values():
            layers = [name for name, part in check_network(run).named_modules() if isinstance(part, BinaryActivation)]
            if self.layer and self.layer not in layers:
                raise ValueError(f"{run.model} has no binary activation {self.layer!r}; it has {', '.join(layers)}")
        return runs


def main() -> None:
    options = parse(ActivationEntropy, "Measure the entropy of each channel's binary activations over the test images.")
    out = output_folder(options.out)
    runs = options.runs()
    run_all(runs, out, options, needs=[ACTIVATIONS])

    records = read_records(out, runs)
    write_results(out, records)
    finished = {record["run"] for record in records if record["status"] == FINISHED}
    load = cache(lambda: load_run_data(runs[0]))
    shares = {
        run.name: activation_shares(run, run_folder(out, run), load)
        for run in tqdm(runs, desc="activations", unit="run", disable=None)
        if run.name in finished
    }
    channels = activation_entropy_channels(records, shares, options.layer)
    rows = activation_entropy_rows(records, channels)
    figure, curves = draw_activation_entropy(channels), activation_entropy_curves(channels)
    conclude(out, "activation_entropy", rows, figure, curves, activation_entropy_finding(rows), CLAIM)


if __name__ == "__main__":
    run_command(main)

"""The entropy of binary weights while training (Fig. 1a): python experiments/weight_entropy.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass

    from mpt_bihalf.commandline import parse
    from mpt_bihalf.files import output_folder, write_csv
    from mpt_bihalf.recipes import WEIGHT_ENTROPY
    from mpt_bihalf.report.outcome import conclude
    from mpt_bihalf.report.weight_entropy import (
        CLAIM,
        draw_weight_entropy,
        weight_entropy_curves,
        weight_entropy_finding,
        weight_entropy_layers,
        weight_entropy_rows,
        weight_entropy_runs,
        weight_entropy_steps,
    )
    from mpt_bihalf.sweep import TracedExperiment, having, read_records, read_trace, run_all
    from mpt_bihalf.training.record import TRACE


@dataclass(frozen=True, kw_only=True)
class WeightEntropy(TracedExperiment):
    """Trainings whose weights are looked at. An option that is not given takes the recipe's value."""

    recipes = WEIGHT_ENTROPY

    layer: str = ""
    """one layer to look at, by name (default: the mean over all, which count alike)"""
    out: str = "runs/weight_entropy"
    """folder for runs, table, figure and curves"""


def main() -> None:
    options = parse(WeightEntropy, "Follow the entropy of the binary weights of each filter while networks train.")
    out = output_folder(options.out)
    runs = options.runs()
    run_all(runs, out, options, needs=[TRACE])

    trace = read_trace(out, runs)
    records = having(read_records(out, runs), trace)
    layers = weight_entropy_layers(records, trace, options.layer)
    steps = weight_entropy_steps(layers)
    write_csv(out / "weight_entropy_steps.csv", steps.to_dict("records"))
    rows = weight_entropy_rows(weight_entropy_runs(records, steps))
    figure, curves = draw_weight_entropy(steps, layers), weight_entropy_curves(steps)
    conclude(out, "weight_entropy", rows, figure, curves, weight_entropy_finding(rows), CLAIM)


if __name__ == "__main__":
    run_command(main)

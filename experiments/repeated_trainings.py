"""Losses and accuracies over many trainings (Fig. 4): python experiments/repeated_trainings.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass

    import pandas as pd

    from mpt_bihalf.commandline import parse
    from mpt_bihalf.files import output_folder
    from mpt_bihalf.recipes import REPEATED_TRAININGS
    from mpt_bihalf.report.outcome import conclude
    from mpt_bihalf.report.repeated_trainings import (
        CLAIM,
        draw_repeated_trainings,
        repeated_trainings_curves,
        repeated_trainings_finding,
        repeated_trainings_rows,
    )
    from mpt_bihalf.sweep import Experiment, read_records, run_all, write_results


@dataclass(frozen=True, kw_only=True)
class RepeatedTrainings(Experiment):
    """Trainings that differ in their seeds alone, with the same seeds for each method."""

    recipes = REPEATED_TRAININGS

    out: str = "runs/repeated_trainings"
    """folder for runs, results.csv (a row a run), table, figure and curves"""


def main() -> None:
    options = parse(RepeatedTrainings, "Train the same network many times by each method; compare what comes out.")
    out = output_folder(options.out)
    runs = options.runs_of()
    run_all(runs, out, options)

    records = read_records(out, runs)
    write_results(out, records)
    frame = pd.DataFrame(records)
    conclude(
        out,
        "repeated_trainings",
        repeated_trainings_rows(frame),
        draw_repeated_trainings(frame),
        repeated_trainings_curves(frame),
        repeated_trainings_finding(frame),
        CLAIM,
    )


if __name__ == "__main__":
    run_command(main)

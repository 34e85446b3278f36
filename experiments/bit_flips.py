"""Bit flips of one filter while training (Fig. 2): python experiments/bit_flips.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass

    from mpt_bihalf.commandline import parse
    from mpt_bihalf.files import output_folder, write_csv
    from mpt_bihalf.recipes import BIT_FLIPS
    from mpt_bihalf.report.bit_flips import (
        CLAIM,
        bit_flips_curves,
        bit_flips_finding,
        bit_flips_rows,
        bit_flips_runs,
        bit_flips_steps,
        draw_bit_flips,
    )
    from mpt_bihalf.report.outcome import conclude
    from mpt_bihalf.sweep import TracedExperiment, having, read_records, read_trace, run_all
    from mpt_bihalf.training.record import TRACE


@dataclass(frozen=True, kw_only=True)
class BitFlips(TracedExperiment):
    """Trainings whose flips are counted. With equal seeds all methods begin with the same latent weights and the same
    signs, half of those of a filter +1."""

    recipes = BIT_FLIPS

    layer: str = ""
    """the layer whose first filter to look at, by name (default: the second binarized one)"""
    out: str = "runs/bit_flips"
    """folder for runs, table, figure and curves"""


def main() -> None:
    options = parse(BitFlips, "Count the bit flips of one filter to +1 and to -1 while networks train.")
    out = output_folder(options.out)
    runs = options.runs()
    run_all(runs, out, options, needs=[TRACE])

    trace = read_trace(out, runs)
    records = having(read_records(out, runs), trace)
    steps = bit_flips_steps(records, trace, options.layer)
    write_csv(out / "bit_flips_steps.csv", steps.to_dict("records"))
    rows = bit_flips_rows(bit_flips_runs(records, steps))
    conclude(out, "bit_flips", rows, draw_bit_flips(steps), bit_flips_curves(steps), bit_flips_finding(rows), CLAIM)


if __name__ == "__main__":
    run_command(main)

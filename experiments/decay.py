"""What weight decay and learning-rate decay do to latent weights and flips (Fig. 3): python experiments/decay.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass, field

    from mpt_bihalf.commandline import parse
    from mpt_bihalf.files import output_folder, write_csv
    from mpt_bihalf.recipes import DECAY
    from mpt_bihalf.report.decay import (
        CLAIM,
        decay_curves,
        decay_finding,
        decay_rows,
        decay_runs,
        decay_steps,
        draw_decay,
    )
    from mpt_bihalf.report.outcome import conclude
    from mpt_bihalf.sweep import Experiment, having, read_records, read_trace, run_all
    from mpt_bihalf.sweep.experiment import Grid, refuse_dense
    from mpt_bihalf.training import Run
    from mpt_bihalf.training.record import TRACE


@dataclass(frozen=True, kw_only=True)
class Decay(Experiment):
    """Which runs to do, each at a constant and at a cosine learning rate. An option that is not given takes the
    recipe's value."""

    recipes = DECAY

    weight_decays: list[float] = field(default_factory=list)
    """weight decays to compare, e.g. 0 1e-4 5e-4 (default: the recipe's)"""
    out: str = "runs/decay"
    """folder for runs, table, figure and curves"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        decays = self.weight_decays or self.chosen_recipe().varied["weight_decay"]

        def vary(method: str) -> Grid:
            refuse_dense(method)
            return Grid(
                [{"weight_decay": decay} for decay in decays], [{"schedule": how} for how in ("constant", "cosine")]
            )

        return self.runs_of(vary)


def main() -> None:
    options = parse(Decay, "Compare weight decays, and a constant with a cosine learning rate.")
    out = output_folder(options.out)
    runs = options.runs()
    run_all(runs, out, options, needs=[TRACE])

    trace = read_trace(out, runs)
    records = having(read_records(out, runs), trace)
    steps = decay_steps(records, trace)
    write_csv(out / "decay_steps.csv", steps.to_dict("records"))
    each = decay_runs(records, steps)
    conclude(out, "decay", decay_rows(each), draw_decay(steps), decay_curves(steps), decay_finding(each), CLAIM)


if __name__ == "__main__":
    run_command(main)

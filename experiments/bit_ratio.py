"""Accuracy against the share of +1 among the weights (Fig. 5): python experiments/bit_ratio.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass

    from mpt_bihalf.commandline import parse
    from mpt_bihalf.files import output_folder, write_csv
    from mpt_bihalf.methods import find_method
    from mpt_bihalf.recipes import BIT_RATIO
    from mpt_bihalf.report.bit_ratio import (
        CLAIM,
        bit_ratio_curves,
        bit_ratio_finding,
        bit_ratio_rows,
        bit_ratio_runs,
        bit_ratio_steps,
        draw_bit_ratio,
    )
    from mpt_bihalf.report.outcome import conclude
    from mpt_bihalf.sweep import Experiment, having, parse_rates, read_layers, read_records, read_trace, run_all
    from mpt_bihalf.sweep.experiment import Grid, refuse_dense
    from mpt_bihalf.training import Run
    from mpt_bihalf.training.record import LAYERS, TRACE


@dataclass(frozen=True, kw_only=True)
class BitRatio(Experiment):
    """Which runs to do. An option that is not given takes the recipe's value."""

    recipes = BIT_RATIO

    ratios: str = "0.1..0.9"
    """shares of +1 (p_pos) for the methods that set it: 0.1..0.9 (steps of 0.1), 0.1..0.9:0.2 (steps of 0.2), 0.5, or
    several with commas; the other methods run once"""
    out: str = "runs/bit_ratio"
    """folder for runs, table, figure and curves"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        recipe = self.chosen_recipe()
        ratios = parse_rates(self.ratios, "ratios")
        data = [self.data] if self.data else recipe.varied.get("data", [recipe.data])

        def vary(method: str) -> Grid:
            refuse_dense(method)
            own = ratios if find_method(method).balanced else [0.5]
            return Grid([{"data": one} for one in data], [{"p_pos": ratio} for ratio in own])

        return self.runs_of(vary)


def main() -> None:
    options = parse(BitRatio, "Compare shares of +1 among the weights, from few to nearly all.")
    out = output_folder(options.out)
    runs = options.runs()
    run_all(runs, out, options, needs=[TRACE, LAYERS])

    trace, layers = read_trace(out, runs), read_layers(out, runs)
    records = having(read_records(out, runs), trace, layers)
    steps = bit_ratio_steps(trace)
    write_csv(out / "bit_ratio_steps.csv", steps.to_dict("records"))
    each = bit_ratio_runs(records, layers, steps)
    figure, curves = draw_bit_ratio(each), bit_ratio_curves(each)
    conclude(out, "bit_ratio", bit_ratio_rows(each), figure, curves, bit_ratio_finding(each), CLAIM)


if __name__ == "__main__":
    run_command(main)

"""What learning a mask brings over a random or a shuffled one: python experiments/mask_controls.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass
    from functools import cache

    import numpy as np
    import pandas as pd
    from tqdm import tqdm

    from mpt_bihalf.commandline import parse
    from mpt_bihalf.files import output_folder
    from mpt_bihalf.methods import METHODS, find_method
    from mpt_bihalf.recipes import MASK_CONTROLS
    from mpt_bihalf.report.mask_controls import (
        CLAIM,
        draw_mask_controls,
        mask_controls_curves,
        mask_controls_finding,
        mask_controls_rows,
    )
    from mpt_bihalf.report.outcome import conclude
    from mpt_bihalf.report.statistics import TOP1
    from mpt_bihalf.sweep import Experiment, parse_rates, read_records, run_all
    from mpt_bihalf.sweep.experiment import Grid
    from mpt_bihalf.sweep.records import run_folder
    from mpt_bihalf.training import Run
    from mpt_bihalf.training.finished import evaluate_shuffled
    from mpt_bihalf.training.record import FINISHED, SHUFFLED
    from mpt_bihalf.training.run_data import load_run_data


@dataclass(frozen=True, kw_only=True)
class MaskControls(Experiment):
    """Which runs to do, each with a learned mask and with a random one. An option that is not given takes the recipe's
    value."""

    recipes = MASK_CONTROLS

    rates: str = "0.1..0.9:0.2"
    """fractions PRUNED: 0.1..0.9:0.2 (steps of 0.2), 0.5, or several with commas"""
    out: str = "runs/mask_controls"
    """folder for runs, table, figure and curves"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        rates = parse_rates(self.rates)

        def vary(method: str) -> Grid:
            if find_method(method).trains != "scores":
                those = ", ".join(name for name, known in METHODS.items() if known.trains == "scores")
                raise ValueError(f"method {method!r} learns no mask; {those} do")
            # A mask that does not learn is the same after one epoch as after many.
            return Grid(
                [{"prune_rate": rate} for rate in rates], [{"learn_mask": True}, {"learn_mask": False, "epochs": 1}]
            )

        return self.runs_of(vary)


def main() -> None:
    options = parse(MaskControls, "Compare learned masks with random ones of the same count, and with shuffled ones.")
    out = output_folder(options.out)
    runs = options.runs()
    run_all(runs, out, options, needs=[SHUFFLED])

    frame = pd.DataFrame(read_records(out, runs))
    frame["mask"] = frame["learn_mask"].map({True: "learned", False: "random"})
    frame[TOP1] = frame.get(TOP1, np.nan)  # no record has it where all runs diverged
    finished = {row["run"] for row in frame.to_dict("records") if row["status"] == FINISHED}
    load = cache(lambda: load_run_data(runs[0]))
    shuffled = []
    for run in tqdm([run for run in runs if run.learn_mask], desc="shuffled masks", unit="run", disable=None):
        if run.name in finished:
            figures = evaluate_shuffled(run, run_folder(out, run), load)
            setting = {name: getattr(run, name) for name in ("model", "method", "prune_rate", "seed")}
            shuffled.append(setting | {"mask": "shuffled"} | figures)
    frame = pd.concat([frame, pd.DataFrame(shuffled)], ignore_index=True)
    rows = mask_controls_rows(frame)
    figure, curves = draw_mask_controls(frame), mask_controls_curves(frame)
    conclude(out, "mask_controls", rows, figure, curves, mask_controls_finding(rows), CLAIM)


if __name__ == "__main__":
    run_command(main)

"""Accuracy of each method on each network (Table 2): python experiments/method_comparison.py"""

import pandas as pd

from mpt_bihalf.commandline import parse, run_command
from mpt_bihalf.files import output_folder, write_csv
from mpt_bihalf.report.method_comparison import (
    CLAIM,
    draw_method_comparison,
    method_comparison_curves,
    method_comparison_finding,
    method_comparison_rows,
)
from mpt_bihalf.report.outcome import conclude
from mpt_bihalf.sweep import read_records, run_all, write_results
from mpt_bihalf.sweep.method_comparison import MethodComparison, tune


def main() -> None:
    options = parse(MethodComparison, "Compare methods on several networks, beside the published accuracies.")
    out = output_folder(options.out)
    runs = options.runs()
    if options.tune:
        runs, scores = tune(runs, options.tuning_runs(), out, options)
        write_csv(out / "tuning.csv", scores.to_dict("records"))
    run_all(runs, out, options)

    records = read_records(out, runs)
    write_results(out, records)
    frame = pd.DataFrame(records)
    rows = method_comparison_rows(frame)
    conclude(
        out,
        "method_comparison",
        rows,
        draw_method_comparison(frame),
        method_comparison_curves(frame),
        method_comparison_finding(rows),
        CLAIM,
    )
    if options.tune:
        print(f"tuning:   {out / 'tuning.csv'}")


if __name__ == "__main__":
    run_command(main)

"""Accuracy against the fraction of pruned weights (Fig. 8): python experiments/prune_sweep.py --rates 0.1..0.9"""

from mpt_bihalf.endings import run_command, show, starting

with starting(__name__):
    from mpt_bihalf.commandline import curves_command, parse
    from mpt_bihalf.files import output_folder, write_text
    from mpt_bihalf.report import draw_sweep, save_figure, sweep_table
    from mpt_bihalf.sweep import PruneSweep, noted, read_records, run_all, write_results


def main() -> None:
    sweep = parse(PruneSweep, "Sweep the pruning rate: accuracy of each method at each fraction of pruned weights.")
    out = output_folder(sweep.out)
    runs = sweep.runs()
    run_all(runs, out, sweep)

    records = read_records(out, runs)
    results = write_results(out, records)
    table = sweep_table(records)
    write_text(out / "table.txt", table + "\n")
    png, pdf = save_figure(draw_sweep(records), out / "prune_sweep")
    show(f"\n{table}\n")
    for note in noted(records):
        show(f"{note}\n")
    show(f"results: {results}\nfigure:  {png}, {pdf}\ncurves:  {curves_command(out / 'runs')}")


if __name__ == "__main__":
    run_command(main)

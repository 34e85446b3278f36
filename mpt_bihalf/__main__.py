"""Commands of the package: python -m mpt_bihalf train | status | report | ticket --help"""

from __future__ import annotations

from .endings import one_line, run_command, show, starting, tell

with starting(__name__):
    import argparse
    import json
    import shutil
    import sys
    import time
    from contextlib import suppress
    from dataclasses import dataclass
    from pathlib import Path
    from typing import Any

    from .commandline import Parser, curves_command, path_argument
    from .data import Dataset
    from .files import output_folder, refuse_links
    from .signals import Stopped
    from .sweep.claim import claimed
    from .sweep.shown import Shown
    from .sweep.status import status_json, status_text
    from .sweep.survey import OVER, survey
    from .tickets.command import add_ticket
    from .training import Run, train
    from .training.build import check_begins, check_compiles, check_fits, check_network, notes_on
    from .training.chain import has_diverged, parent_of
    from .training.checkpoint import has_ended
    from .training.names import folder_within
    from .training.recorded_data import check_asked, check_data, has_begun
    from .training.run_data import load_run_data


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where the run goes."""

    out: str = "runs"
    """folder in which the run gets its own, named by a hash of its configuration"""


def main() -> None:
    parser = Parser(prog="python -m mpt_bihalf", description="Binary lottery tickets.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    training = commands.add_parser(
        "train",
        help="one training run; an interrupted one goes on",
        description="Train one network; the same command goes on with an interrupted run.",
    )
    training.add_arguments(Run, dest="run")
    training.add_arguments(Where, dest="where")
    status = commands.add_parser(
        "status",
        help="how a sweep stands",
        description="What of a sweep is done, running (with its last figures and a time left), failed (and why) and "
        "missing, and the command that goes on. Reads only; at any time, while the sweep runs or after.",
        epilog="What is missing is known from the plans in OUT/sweeps, one for each command; delete the file of one "
        "that is not to be finished.",
    )
    _add_folder(status)
    status.add_argument(
        "--json", action="store_true", default=None, help="the same for programs, every run with its state"
    )
    status.add_argument(
        "--watch", nargs="?", type=_seconds, const=5.0, metavar="SECONDS", help="draw again every so often (5 s)"
    )
    report = commands.add_parser(
        "report",
        help="tables and a figure of a sweep, finished or not",
        description="Tables (text, CSV, Markdown, LaTeX) and a figure (PNG, PDF) of a sweep, finished or half-way: "
        "mean ± sample standard deviation over the trials, grouped and filtered by any field of a run.",
        epilog="e.g. python -m mpt_bihalf report runs/prune_sweep --where model=conv4 prune_rate=0.1..0.5 --figure "
        "test_loss",
    )
    _add_folder(report)
    report.add_arguments(Shown, dest="shown")
    add_ticket(commands)
    for command, do in ((training, do_train), (status, show_status), (report, write_report)):
        command.set_defaults(do=do)
    options = parser.parse_args()
    options.do(options)


def do_train(options: Any) -> None:
    """Train one run, and before it the rounds that it comes after."""
    run = options.run.resolved()
    out = output_folder(options.where.out)
    folder = folder_within(out, run)
    check_network(run)
    check_compiles(run)
    dataset = load_run_data(run)
    model = check_fits(run, dataset)
    for note in filter(None, (dataset.left_out, *notes_on(run, model))):
        tell(note)
    rounds = _rounds_to_do(run, out)
    for each in rounds:
        tell(f"round {each.name}: one of {len(rounds)} to do before the last")
        _train(each, out, dataset)
    result = _train(run, out, dataset)
    show(json.dumps(result, indent=2))
    if "note" in result:
        show(f"note:   {one_line(result['note'])}")
    show(f"run:    {folder}\ncurves: {curves_command(folder)}")


def _train(run: Run, out: Path, dataset: Dataset) -> dict[str, Any]:
    folder = folder_within(out, run)
    refuse_links(folder, out)
    if not has_begun(folder):
        check_begins(run, check_fits(run, dataset))
    check_asked(run, dataset.digest)
    check_data(folder, run, dataset.digest)
    with claimed(folder) as ours:
        if not ours:
            raise ValueError(f"another process is doing this run: {folder}")
        return train(run, folder, dataset)


def _rounds_to_do(run: Run, out: Path) -> list[Run]:
    """The rounds before a run of iterative pruning that are to be done before it, the first of them first."""
    found: list[Run] = []
    before = None if has_begun(folder_within(out, run)) else parent_of(run)
    while before is not None:
        folder = folder_within(out, before)
        if has_ended(folder, before) or has_diverged(folder):
            break
        found.insert(0, before)
        before = parent_of(before)
    return found


def show_status(options: Any) -> None:
    """Show how a sweep stands, once or again and again until it is done."""
    if options.watch and options.json:
        raise ValueError("--watch draws a screen and --json is for programs: choose one")
    try:
        while True:
            found = survey(options.out)
            screen = shutil.get_terminal_size((100, 50))
            text = json.dumps(status_json(found)) if options.json else status_text(found, *screen)
            if options.watch and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            show(text)
            if not options.watch or all(status.state in OVER for status in found.runs):
                return
            time.sleep(options.watch)
    except KeyboardInterrupt as stop:
        if not options.watch or isinstance(stop, Stopped):  # an interrupt is how one ends looking
            raise


def write_report(options: Any) -> None:
    """Print and write what the sweep's results are."""
    with starting():
        from .report.sweep_report import sweep_report  # with matplotlib, half a second that no other command needs

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    sweep_report(survey(options.out), options.shown, columns)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=path_argument, metavar="OUT", help="the sweep's folder, which its --out gave")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0.1 <= float(text) <= 86_400:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not from 0.1 to 86,400 seconds")


if __name__ == "__main__":
    run_command(main)

"""Commands of the package: python -m mpt_bihalf train --help"""

from __future__ import annotations

import json
from dataclasses import dataclass

from .commandline import Parser, curves_command, run_command
from .files import output_folder
from .training import Run, train


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
    options = parser.parse_args()
    run = options.run.resolved()
    folder = output_folder(options.where.out) / run.name
    result = train(run, folder)
    print(json.dumps(result, indent=2))
    print(f"run:    {folder}\ncurves: {curves_command(folder)}")


if __name__ == "__main__":
    run_command(main)

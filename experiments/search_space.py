"""All binary weights of a small network and the boundaries they draw (Fig. 6): python experiments/search_space.py"""

from mpt_bihalf.endings import run_command, starting

with starting(__name__):
    from dataclasses import dataclass

    from mpt_bihalf.commandline import parse
    from mpt_bihalf.files import output_folder
    from mpt_bihalf.report.outcome import conclude
    from mpt_bihalf.report.search_space import CLAIM, draw_search_space, search_space_finding, search_space_rows
    from mpt_bihalf.search_space import enumerate_search_space


@dataclass(frozen=True, kw_only=True)
class Options:
    """The grid that tells decision boundaries apart."""

    step: float = 0.04
    """distance between neighbouring points of the grid; at most 4 million points"""
    extent: float = 5.0
    """the grid covers [-extent, extent) along both inputs; at most 16"""
    out: str = "runs/search_space"
    """folder for the table, the figure and the curves"""


def main() -> None:
    options = parse(Options, "Enumerate all 4,096 binary weights of a 2-3-1 network and count the decision boundaries.")
    out = output_folder(options.out)
    space = enumerate_search_space(options.step, options.extent)
    rows = search_space_rows(space)
    curves = {name: [(row["negatives"], row[name]) for row in rows] for name in ("combinations", "boundaries")}
    conclude(
        out, "search_space", rows, draw_search_space(space), curves, search_space_finding(space), CLAIM, runs=False
    )


if __name__ == "__main__":
    run_command(main)

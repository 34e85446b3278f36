"""Tickets of different kinds at equal counts: accuracy against the fraction of weights kept."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..commandline import words
from ..data import short_data
from ..endings import run_command
from ..masks import initial_mask_names
from ..methods import find_method
from ..redraw import EVERY, check_redraw
from ..report.figures import COLOURS, MARKERS, draw_spread
from ..report.outcome import Curves, Outcome
from ..report.statistics import SIGNIFICANT, TOP1, holm, paired
from ..training import Run
from ..training.canonical import IMP_SHARE
from .experiment import TrainingExperiment
from .grid import Setting, parse_rates
from .recipe import PAPER, QUICK, Recipe
from .results import Results

METHODS = ("mpt-sign", "mpt-bihalf", "mpt-balanced", "magnitude-bihalf", "bihalf", "dense")
# Real-valued networks learn nothing at the rate of the others (see prune_sweep).
OF_METHOD = {"dense": {"lr": 0.01}}
REFERENCE = "mpt-sign"
FEW = 5  # trials
# How often weights are redrawn in a training of a few epochs: steps, and epochs.
QUICK_EVERY = {"iterand": 10, "recycle": 1}
# Of networks that are not pruned.
LINES = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))


@dataclass(frozen=True, kw_only=True)
class TicketComparison(TrainingExperiment):
    """Which tickets to compare. An option that is not given takes the recipe's value."""

    name = "ticket_comparison"
    about = (
        "Compare tickets at equal counts: learned masks, masks of trained weights, and masks that are fixed before "
        "training, of binary and of real-valued weights."
    )
    claim = (
        "Diffenderfer & Kailkhura 2021: a random network holds binary subnetworks that are as accurate as a trained "
        "real-valued network"
    )
    recipes: ClassVar = {
        "quick": Recipe("digits", ("conv2",), METHODS, 3, 5, QUICK, OF_METHOD),
        "paper": Recipe("cifar10", ("conv4",), METHODS, 5, 100, PAPER, OF_METHOD),
    }
    lists_runs = True

    redraws: list[str] = field(default_factory=list)
    """what may become of pruned weights under methods that learn a mask over frozen ones, beside nothing: iterand,
    recycle, or none (default: both)"""
    redraw_every: int | None = None
    """how often, in steps for iterand, in epochs for recycle (default: the recipe's, of quick 10 and 1, of paper 300
    and 10)"""
    rates: str = "0.5,0.7,0.8,0.9"
    """fractions PRUNED: several with commas, or 0.1..0.9:0.2 (steps of 0.2)"""
    masks: list[str] = field(default_factory=list)
    """masks for each method without one of its own, which is also trained unpruned: snip, grasp, synflow, random and
    magnitude, fixed before training, imp, pruned in rounds, or none (default: all of them)"""
    imp_share: float = IMP_SHARE
    """of imp, the share of the kept weights that a round prunes, in [0.01, 1]; fewer rounds take less time"""
    rewind: str = ""
    """of imp, the step of the unpruned training that rounds begin from: 500it, or 2ep (default: the beginning)"""
    out: str = "runs/ticket_comparison"
    """folder for runs, table, figure and curves"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        rates, masks = parse_rates(self.rates), words(self.masks) or [*initial_mask_names(), "imp"]
        if 0 in rates:
            raise ValueError("rates 0: what is not pruned is trained in any case; leave it out")
        masks = [mask for mask in masks if mask != "none"]
        redraws = [name for name in words(self.redraws) or [*EVERY] if name != "none"]
        epochs = self.chosen_recipe().epochs if self.epochs is None else self.epochs

        def vary(method: str) -> list[Setting]:
            pruned: list[Setting] = [{"prune_rate": rate} for rate in rates]
            if find_method(method).trains == "scores":
                every = {name: self._every(name) for name in redraws if goes_with(name, method)}
                # By default recycled weights are left out of runs that are too short for them.
                some = {name: n for name, n in every.items() if self.redraws or name != "recycle" or n < epochs}
                return pruned + [
                    {"redraw": name, "redraw_every": n, **setting} for name, n in some.items() for setting in pruned
                ]
            if find_method(method).mask is not None:
                return pruned
            of_rounds = {"imp_share": self.imp_share, "rewind": self.rewind}
            return [{}, *({"mask": mask, **of_rounds, **setting} for mask in masks for setting in pruned)]

        return self.runs_of(vary)

    def _every(self, redraw: str) -> int:
        own = QUICK_EVERY if self.recipe == "quick" else EVERY
        return own[redraw] if self.redraw_every is None else self.redraw_every

    def outcome(self, results: Results) -> Outcome:
        frame = with_tickets(results.records)
        rows = rows_of(frame)
        return Outcome(
            rows=rows,
            figure=draw(frame),
            curves=curves_of(frame),
            finding=finding_of(rows),
            note=f"difference is from {REFERENCE} at the same rate, over equal seeds; p of a paired t test, by Holm "
            "over all of the table. Counts are those of the rate, rounded in each layer, for fixed masks over the "
            "network, and for mpt-balanced and magnitude-bihalf in each filter",
        )


def goes_with(redraw: str, method: str) -> bool:
    """Whether weights can be redrawn so under this method. ValueError for an unknown redraw."""
    if redraw not in EVERY:
        raise ValueError(f"unknown redraw {redraw!r}; known: {', '.join(EVERY)}, none")
    try:
        check_redraw(redraw, method, find_method(method).binarizer)
    except ValueError:
        return False
    return True


def with_tickets(records: list[dict[str, Any]]) -> pd.DataFrame:
    """The records with `ticket`, what each run is, and `kept`, in %.

    A ticket is a method, or a mask, or what becomes of pruned weights, + the method.
    """
    frame = pd.DataFrame(records)
    frame[TOP1] = frame.get(TOP1, np.nan)  # no record has it where all runs diverged
    nothing = pd.Series("", index=frame.index)
    before = frame.get("mask", nothing).fillna("") + frame.get("redraw", nothing).fillna("")
    frame["ticket"] = np.where(before == "", frame["method"], before + " + " + frame["method"])
    frame["kept"] = (100 * (1 - frame["prune_rate"])).round(6)
    return frame


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each network, ticket and rate: mean and deviation of test top-1 in percent, and how it differs.

    frame: as of `with_tickets`. difference: the mean from that of mpt-sign over equal seeds; p of the paired t test,
    corrected by Holm for all rows.
    """
    rows = []
    for (model, ticket, kept), block in frame.groupby(["model", "ticket", "kept"], sort=False):
        row: dict[str, Any] = {"model": model, "ticket": ticket, "kept, %": kept, "trials": int(block[TOP1].count())}
        row |= {TOP1: block[TOP1].mean(), "std": block[TOP1].std()}
        of_reference = frame[(frame["model"] == model) & (frame["ticket"] == REFERENCE) & (frame["kept"] == kept)]
        apart = paired(block, of_reference) if len(of_reference) and ticket != REFERENCE else {}
        rows.append(row | {name: apart.get(name, np.nan) for name in ("difference", "p")})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p"] = p
    return rows


def draw(frame: pd.DataFrame) -> Figure:
    """Test top-1 against the percentage of weights kept: for each network a panel of binary and one of real weights.

    A mask has one colour in all panels. Networks that are not pruned are lines across. Points of one rate stand a
    little apart.
    """
    real = frame["method"].map(lambda method: find_method(method).binarizer is None)
    parts = [(model, kind) for model in dict.fromkeys(frame["model"]) for kind in (False, True)]
    parts = [part for part in parts if ((frame["model"] == part[0]) & (real == part[1])).any()]
    by = frame["mask"].where(frame["mask"] != "", frame["ticket"])
    unpruned = frame["kept"] == 100
    place_of = {name: place for place, name in enumerate(dict.fromkeys(by[~unpruned]))}
    line_of = {name: LINES[place % len(LINES)] for place, name in enumerate(dict.fromkeys(frame["method"][unpruned]))}
    figure = Figure(figsize=(5.4 * len(parts) + 0.4, 6.2), layout="constrained")
    for panel, (model, kind) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        part = frame[(frame["model"] == model) & (real == kind)]
        tickets = [*part[part["kept"] < 100].groupby("ticket", sort=False)]
        for number, (ticket, block) in enumerate(tickets):
            place, points = place_of[by[block.index[0]]], block.groupby("kept")[TOP1].agg(["mean", "std"])
            beside = 1.012 ** ((len(tickets) - 1) / 2 - number)
            style = {"color": COLOURS[place], "marker": MARKERS[place], "label": ticket}
            draw_spread(panel, points.index * beside, points, **style)
        for method, block in part[part["kept"] == 100].groupby("method", sort=False):
            panel.axhline(block[TOP1].mean(), color="0.3", linestyle=line_of[method], label=f"{method}, not pruned")
        panel.set(title=f"{model}, {'real' if kind else 'binary'} weights", xlabel="weights kept (%)", xscale="log")
        ticks = sorted({kept for kept in part["kept"] if kept < 100})
        panel.set_xticks(ticks, [f"{kept:g}" for kept in ticks], minor=False)
        panel.minorticks_off()
        panel.invert_xaxis()
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    trials = frame.groupby(["model", "ticket", "kept"])[TOP1].count()
    told = f"{trials.min()}" if trials.min() == trials.max() else f"{trials.min()} to {trials.max()}"
    data = ", ".join(dict.fromkeys(map(short_data, frame["data"])))
    figure.suptitle(f"{data}: mean ± standard deviation of {told} trials", fontsize="medium")
    figure.axes[0].set(ylabel="test top-1 accuracy (%)")
    return figure


def curves_of(frame: pd.DataFrame) -> Curves:
    """Mean test top-1 by the percentage of weights kept, for each network and ticket."""
    means = frame.groupby(["model", "ticket", "kept"], sort=False)[TOP1].mean().dropna()
    curves: Curves = {}
    for (model, ticket, kept), value in means.items():
        curves.setdefault(f"{model}/{ticket}", []).append((round(kept), float(value)))
    return curves


def finding_of(rows: list[dict[str, Any]]) -> str:
    """One line: the most accurate ticket of each kind of weights at each rate, and how many differ from mpt-sign."""
    pruned = [row for row in rows if row["kept, %"] < 100 and np.isfinite(row[TOP1])]
    parts = []
    for model in dict.fromkeys(row["model"] for row in pruned):
        best = []
        for kept in sorted({row["kept, %"] for row in pruned if row["model"] == model}, reverse=True):
            here = [row for row in pruned if (row["model"], row["kept, %"]) == (model, kept)]
            kinds = [[row for row in here if row["ticket"].endswith("dense") == real] for real in (False, True)]
            tops = [max(some, key=lambda row: row[TOP1]) for some in kinds if some]
            told = " and ".join(f"{top['ticket']} {top[TOP1]:.1f}" for top in tops)
            best.append(f"{kept:g} % kept {told}")
        whole = [row for row in rows if row["model"] == model and row["kept, %"] == 100 and np.isfinite(row[TOP1])]
        told = "".join(f"; not pruned, {row['ticket']} {row[TOP1]:.1f}" for row in whole)
        parts.append(f"{model}, the most accurate of binary and of real weights: {'; '.join(best)}{told}")
    tested = [row for row in pruned if np.isfinite(row["p"])]
    sure = [row for row in tested if row["p"] < SIGNIFICANT]
    above = sum(row["difference"] > 0 for row in sure)
    told = f"are above {REFERENCE} and {len(sure) - above} below with p < {SIGNIFICANT} by Holm"
    trials = max((row["trials"] for row in tested), default=0)
    few = f"; {trials} trials a cell are few for so many cells" if trials < FEW else ""
    parts.append(
        f"{above} of {len(tested)} cells {told}{few}" if tested else "too few finished runs to tell it from chance"
    )
    return ". ".join(parts)


if __name__ == "__main__":
    run_command(TicketComparison.main)

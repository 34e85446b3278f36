"""Accuracy against the fraction of pruned weights (Fig. 8)."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_type_hints

import pandas as pd

from ..commandline import curves_command, words
from ..endings import run_command, show
from ..files import write_text
from ..methods import METHODS, find_method
from ..report.figures import draw_sweep, save_figure
from ..report.outcome import sentences
from ..report.statistics import SIGNIFICANT, TOP1, compare, holm, reference_of
from ..report.sweep_report import choose_view, few_seeds, pooled, tables_text, told_apart
from ..report.tables import split_settings, sweep_tables
from ..sweep import noted, write_results
from ..sweep.shown import Shown
from ..training import Run
from .experiment import TrainingExperiment
from .grid import Grid, Setting, parse_rates
from .recipe import OF_MODEL, PAPER, QUICK, Recipe
from .results import Results

__all__ = ["PruneSweep"]

# Fields of a run that a sweep has options of its own for.
OPTION_OF = {"prune_rate": "--rates", "model": "--models", "method": "--methods", "seed": "--seed and --trials"}


@dataclass(frozen=True, kw_only=True)
class PruneSweep(TrainingExperiment):
    """What to sweep. An option that is not given takes the recipe's value."""

    name = "prune_sweep"
    about = "Sweep the pruning rate: accuracy of each method at each fraction of pruned weights."
    claim = (
        "Conv2/4/6/8 on CIFAR-10 and ResNet-18 on CIFAR-100, pruned, are consistently more accurate with bi-half than "
        "with sign (MPT), and pruning finds subnetworks that are more accurate than the full binary network"
    )
    recipes: ClassVar = {
        # At the rate of the others two of three real-valued networks learn nothing. Theirs has the best mean of 0.003,
        # 0.01, 0.02, 0.03 and 0.05 on held-out images: --methods dense --grid holdout=0.2 lr=... --trials 5.
        "quick": Recipe(
            "digits",
            ("conv2",),
            ("mpt-sign", "mpt-bihalf", "mpt-balanced", "dense"),
            3,
            3,
            QUICK,
            of_method={"dense": {"lr": 0.01}},
        ),
        # The unpruned binary networks stand beside the pruned ones. The last panel of Fig. 8 is that of
        # `--models resnet18 --data cifar100`.
        "paper": Recipe(
            "cifar10",
            ("conv2", "conv4", "conv6", "conv8"),
            ("mpt-sign", "mpt-bihalf", "sign", "bihalf"),
            5,
            100,
            PAPER,
            of_model=OF_MODEL,
        ),
    }

    rates: str = "0.1..0.9"
    """fractions PRUNED (the reference MPT code's flag counts the kept): 0.1..0.9 (steps of 0.1), 0.1..0.9:0.2 (steps of
    0.2), 0.5, or several with commas"""
    methods: list[str] = field(default_factory=list)
    """methods, e.g. mpt-sign mpt-bihalf; one without a mask runs once and is drawn as a line (default: the recipe's)"""
    scope: str = ""
    """what edge-popup ranks scores within: layer, filter or global"""
    skip: list[str] = field(default_factory=list)
    """layers left real-valued: names, or the rules first, last, downsample; none skips none"""
    grid: list[str] = field(default_factory=list)
    """any other field of a run (python -m mpt_bihalf train --help lists them) with its values, e.g. lr=0.1,0.05
    scale=kaiming,l1; the items of one value are joined by +, e.g. milestones=10+20,15"""
    out: str = "runs/prune_sweep"
    """folder for runs, results.csv, table and figure"""

    def runs(self) -> list[Run]:
        """All runs of the sweep, each once, trials innermost. Raises ValueError, naming the option at fault."""
        self.chosen_recipe()
        rates = parse_rates(self.rates)
        common = {"scope": self.scope, "skip": tuple(words(self.skip))}
        axes = grid_axes(self.grid)
        fixed = any(setting.get("mask") for axis in axes for setting in axis)

        def vary(method: str) -> Grid:
            own = rates if find_method(method).mask is not None or fixed else [0.0]
            return Grid([common], *axes, [{"prune_rate": rate} for rate in own])

        return self.runs_of(vary)

    def conclude(self, results: Results) -> None:
        """`results.csv`, `table.txt` and the figure; `report` writes the table in the other formats."""
        out, records = results.out, results.records
        path = write_results(out, records)
        frame, notes = told_apart(pd.DataFrame(records))
        view = choose_view(frame, Shown())
        table = tables_text(sweep_tables(frame, view))
        write_text(out / "table.txt", table + "\n")
        png, pdf = save_figure(draw_sweep(frame, view), out / self.name)
        show(f"\n{table}\n")
        for note in (*notes, *pooled(frame, view), *noted(records), *few_seeds(frame, view)):
            show(f"{note}\n")
        show(f"{sentences(finding_of(records), self.claim)}\n")
        show(f"runs:    {out / 'runs'}\nresults: {path}\nfigure:  {png}, {pdf}\ncurves:  {curves_command(out)}")


def finding_of(records: list[dict[str, Any]]) -> str:
    """One line: at how many rates each method is above mpt-sign and by how much, and whether pruning beats none."""
    return " | ".join(f"{title}: {_tell(part)}" for title, part in split_settings(pd.DataFrame(records)))


def _tell(runs: pd.DataFrame) -> str:
    """What the runs of one network and setting say."""
    runs = runs.drop_duplicates(["method", "prune_rate", "seed"])
    masked = runs["method"].map(lambda method: METHODS[method].mask is not None)
    pruned = runs[masked | (runs["prune_rate"] > 0)]
    parts = []
    if len(pruned):
        reference = reference_of(pruned, "mpt-sign")
        rates = compare(pruned, reference, by=("prune_rate",))
        rates["p"] = holm(list(rates["p"]))
        others = [name for name in rates["method"].unique() if name != reference]
        parts = [_tell_method(rates[rates["method"] == name], reference) for name in others]
        if others and rates["pairs"].max() == 1:
            parts.append("one trial each is too little to tell this from chance")
    parts.append(_tell_best(runs))
    lost = int(runs.reindex(columns=[TOP1])[TOP1].isna().sum())
    return "; ".join([*parts, *([f"{lost} of {len(runs)} runs diverged"] if lost else [])])


def _tell_method(rates: pd.DataFrame, reference: str) -> str:
    """How one pruned method differs from the reference. rates: its rows, as `compare` has them."""
    method, told = rates["method"].iloc[0], rates.dropna(subset=["difference"])
    if told.empty:
        return f"{method} has no finished run beside one of {reference}"
    above = told["difference"] > 0
    sure = told["p"] < SIGNIFICANT
    surely = f" ({(above & sure).sum()} with p < {SIGNIFICANT} by Holm)" if told["p"].notna().any() else ""
    below = f", surely below it at {(~above & sure).sum()}" if (~above & sure).any() else ""
    return (
        f"{method} is above {reference} at {above.sum()} of {len(told)} rates{surely}, "
        f"{told['difference'].mean():+.2f} points on average{below}"
    )


def _tell_best(runs: pd.DataFrame) -> str:
    """The best mean of a pruned network, of a binary one that is not, and of one with real weights."""
    finished = runs.reindex(columns=["method", "prune_rate", TOP1]).dropna(subset=[TOP1])
    pruned, binary = (
        finished["prune_rate"] > 0,
        finished["method"].map(lambda name: METHODS[name].binarizer is not None).astype(bool),
    )
    told = []
    for kind, part in (
        ("pruned", finished[pruned]),
        ("unpruned", finished[~pruned & binary]),
        ("real-valued", finished[~pruned & ~binary]),
    ):
        if len(part):
            means = part.groupby(["method", "prune_rate"], sort=False)[TOP1].mean()
            method, rate = means.idxmax()
            told.append(
                f"the best {kind} network has {means.max():.2f} % ({method}{f' at {100 * rate:g} %' if rate else ''})"
            )
    return ", ".join(told) or "no run finished"


def grid_axes(grid: list[str]) -> list[list[Setting]]:
    """An axis for each entry `field=value,value`. ValueError for a field or value unknown."""
    types = get_type_hints(Run)
    names = [item.name for item in fields(Run)]
    axes: dict[str, list[Setting]] = {}
    for entry in grid:
        name, equals, values = entry.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not values:
            raise ValueError(f"grid {entry!r}: write field=value,value")
        if name in OPTION_OF:
            raise ValueError(f"grid {entry!r}: give {name} by {OPTION_OF[name]}")
        if name not in names:
            raise ValueError(f"grid {entry!r}: a run has no field {name!r}; it has {', '.join(names)}")
        if name in axes:
            raise ValueError(f"grid {entry!r}: {name} is given twice")
        axes[name] = [{name: _as_type(types[name], value.strip(), entry)} for value in values.split(",")]
    return list(axes.values())


def _as_type(kind: Any, text: str, entry: str) -> Any:
    """`text` as a value of a field of this type; a tuple's items are joined by `+`."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind == tuple[int, ...]:
            return tuple(int(item) for item in text.split("+"))
        if kind == tuple[str, ...]:
            return tuple(text.split("+"))
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "whole numbers with +")
        raise ValueError(f"grid {entry!r}: {text!r} is not {expected}") from None
    return text


if __name__ == "__main__":
    run_command(PruneSweep.main)

"""Losses and accuracies over many trainings of the same settings (Fig. 4)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data import short_data
from ..endings import run_command
from ..report.figures import FOOTNOTE, method_colours
from ..report.outcome import Curves, Outcome
from ..report.statistics import SIGNIFICANT, compare, diverged_texts, p_text, reference_of
from .experiment import TrainingExperiment
from .recipe import PAPER, QUICK, Recipe
from .results import Results

# Name, unit, and whether more is better, of what is compared.
FIGURES = {
    "train_loss": ("train loss", "nats", False),
    "test_loss": ("test loss", "nats", False),
    "train_top1": ("train top-1", "%", True),
    "test_top1": ("test top-1", "%", True),
}
# The fewest pairs with which the signed-rank test can fall below 0.05: 2 / 2^6.
FEWEST_FOR_RANKS = 6
# Above this many trainings the lines of the sorted figures need no markers.
MANY = 40


@dataclass(frozen=True, kw_only=True)
class RepeatedTrainings(TrainingExperiment):
    """Trainings that differ in their seeds alone, with the same seeds for each method."""

    name = "repeated_trainings"
    about = "Train the same network many times by each method; compare what comes out."
    claim = (
        "over 100 trainings of Conv2 on CIFAR-10 bi-half reaches lower train and test loss and higher train and test "
        "accuracy than sign, consistently and on average"
    )
    recipes: ClassVar = {
        "quick": Recipe("digits", ("conv2",), ("sign", "bihalf"), 20, 3, QUICK),
        "paper": Recipe("cifar10", ("conv2",), ("sign", "bihalf"), 100, 100, PAPER),
    }
    lists_runs = True

    out: str = "runs/repeated_trainings"
    """folder for runs, results.csv (a row a run), table, figure and curves"""

    def outcome(self, results: Results) -> Outcome:
        frame = pd.DataFrame(results.records)
        return Outcome(rows=rows_of(frame), figure=draw(frame), curves=curves_of(frame), finding=finding_of(frame))


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each network, figure and method: its distribution over the trainings, and how it differs from sign's.

    frame: the records of runs. difference, pairs, p (paired t test) and p_ranks (Wilcoxon signed-rank test) are those
    of `statistics.paired` against `statistics.reference_of`; losses in nats, accuracies in percent.
    """
    tables = {figure: compare(frame, reference_of(frame), figure=figure) for figure in FIGURES}
    columns = ["trials", "diverged", "mean", "std", "min", "max", "difference", "pairs", "p", "p_ranks"]
    rows = []
    for model in frame["model"].unique():
        for figure, table in tables.items():
            for row in table[table["model"] == model].to_dict("records"):
                head = {"model": model, "data": row["data"], "method": row["method"], "figure": figure}
                rows.append(head | {name: row[name] for name in columns})
    return rows


def curves_of(frame: pd.DataFrame) -> Curves:
    """The sorted values of each figure by network and method: (rank from 1 on, value)."""
    return {
        f"{figure}/{model}/{method}": list(enumerate(values.tolist(), 1))
        for figure in FIGURES
        for model, block in frame.groupby("model", sort=False)
        for method, values in sorted_values(block, figure).items()
    }


def sorted_values(frame: pd.DataFrame, figure: str) -> dict[str, np.ndarray]:
    """The figure of each method's finished runs, ascending."""
    return {
        str(method): np.sort(block[figure].dropna().to_numpy(float)) if figure in block else np.empty(0)
        for method, block in frame.groupby("method", sort=False)
    }


def finding_of(frame: pd.DataFrame) -> str:
    """One line: in which figures each method is better than the reference, and whether significantly so."""
    reference = reference_of(frame)
    table = pd.DataFrame(rows_of(frame))
    parts = []
    for (model, data), block in table.groupby(["model", "data"], sort=False):
        base = block[block["method"] == reference]
        for method, rows in block[block["method"] != reference].groupby("method", sort=False):
            told = [_verdict(rows, base), *diverged_texts(pd.concat([rows, base]))]
            parts.append(f"{model} on {short_data(data)}: {method} {'; '.join(told)}")
    return " | ".join(parts) or f"only {reference} was trained: there is nothing to compare it with"


def _verdict(rows: pd.DataFrame, base: pd.DataFrame) -> str:
    """How a method compares with the reference. rows, base: of each, in the order of the figures."""
    reference, pairs = base["method"].iloc[0], rows["pairs"].iloc[0]
    if pairs < 2:
        return f"cannot be told from {reference} by {'one' if pairs else 'no'} pair of finished trainings"
    groups: dict[str, list[str]] = {"better in": [], "worse in": [], "not significantly different in": []}
    disagreed = []
    for row, other in zip(rows.to_dict("records"), base.to_dict("records"), strict=True):
        name, unit, more = FIGURES[row["figure"]]
        group = "better in" if (row["difference"] > 0) == more else "worse in"
        if not row["p"] < SIGNIFICANT:
            group = "not significantly different in"
        groups[group].append(f"{name} ({row['mean']:.4g} to {other['mean']:.4g} {unit}, {p_text(row['p'])})")
        if (row["p_ranks"] < SIGNIFICANT) != (row["p"] < SIGNIFICANT):
            disagreed.append(name)
    ranks = f"disagrees on {', '.join(disagreed)}" if disagreed else "agrees"
    if pairs < FEWEST_FOR_RANKS:
        ranks = f"can tell nothing from {pairs} pairs"
    told = ", ".join(f"{group} {', '.join(names)}" for group, names in groups.items() if names)
    return (
        f"against {reference} over {pairs} equal seeds is {told} by paired t tests; Wilcoxon's signed-rank test {ranks}"
    )


def draw(frame: pd.DataFrame) -> Figure:
    """For each network above the distribution of each figure over the trainings, below its sorted values (Fig. 4)."""
    networks = frame.groupby("model", sort=False)
    colours = method_colours(frame["method"])
    figure = Figure(figsize=(3.6 * len(FIGURES), 6.2 * len(networks) + 0.4), layout="constrained")
    panels = figure.subplots(2 * len(networks), len(FIGURES), squeeze=False)
    for (model, block), above, below in zip(networks, panels[::2], panels[1::2], strict=True):
        tests = pd.DataFrame(rows_of(block)).dropna(subset=["p"])
        for (name, (title, unit, _)), upper, lower in zip(FIGURES.items(), above, below, strict=True):
            values = sorted_values(block, name)
            _draw_distributions(upper, values, colours)
            _draw_sorted(lower, values, colours)
            p = [f"{test['method']}: {p_text(test['p'])}" for test in tests[tests["figure"] == name].to_dict("records")]
            upper.set_title(f"{model}, {title}\n{', '.join(p)}", fontsize="medium")
            for panel in (upper, lower):
                panel.set_ylabel(f"{title} ({unit})")
                panel.grid(alpha=0.3)
        below[0].legend(fontsize="small")
    trials = int(frame.groupby(["model", "method"]).size().max())
    data = ", ".join(short_data(name) for name in frame["data"].unique())
    figure.suptitle(f"{trials} training{'s' * (trials != 1)} of each method on {data}")
    figure.supxlabel(
        "above: every training, their density, mean and standard deviation; "
        f"p: paired t test over equal seeds against {reference_of(frame)}",
        **FOOTNOTE,
    )
    return figure


def _draw_distributions(panel: Axes, values: dict[str, np.ndarray], colours: dict[str, str]) -> None:
    for place, (method, found) in enumerate(values.items()):
        if not len(found):
            continue
        if np.ptp(found) > 0:  # equal values have no density
            for body in panel.violinplot([found], [place], widths=0.8, showextrema=False)["bodies"]:  # type: ignore[attr-defined]
                body.set(facecolor=colours[method], alpha=0.25)
        # Side by side by the golden ratio, so that neighbours in value stand apart and the picture is always the same.
        aside = 0.3 * (np.arange(len(found)) * 0.618 % 1 - 0.5)
        panel.scatter(place + aside, found, s=12, color=colours[method], alpha=0.7, linewidths=0)
        deviation = found.std(ddof=1) if len(found) > 1 else 0
        panel.errorbar([place], [found.mean()], [deviation], color="black", marker="D", markersize=5, capsize=4)
    panel.set_xticks(range(len(values)), list(values))
    panel.set_xlim(-0.6, len(values) - 0.4)
    panel.set_xlabel("method")


def _draw_sorted(panel: Axes, values: dict[str, np.ndarray], colours: dict[str, str]) -> None:
    for method, found in values.items():
        marker = "o" if len(found) <= MANY else ""
        ranks = np.arange(1, len(found) + 1)
        panel.plot(ranks, found, color=colours[method], marker=marker, markersize=3.5, label=method)
    panel.set_xlabel("training, sorted by its figure (rank)")


if __name__ == "__main__":
    run_command(RepeatedTrainings.main)

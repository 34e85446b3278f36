"""What weight decay and learning-rate decay do to latent weights and flips (Fig. 3)."""

from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data import short_data
from ..endings import run_command
from ..report.figures import COLOURS, FOOTNOTE, draw_mean
from ..report.outcome import Curves, Outcome
from ..report.statistics import TOP1
from ..report.traces import STEP, Row, finished_traces, summarise_runs
from ..sweep import having
from ..training import Run
from ..training.record import TRACE
from .experiment import TrainingExperiment
from .grid import Grid
from .recipe import PAPER, QUICK, Recipe
from .results import Results

GROUP = ["model", "data", "method"]
SETTING = [*GROUP, "weight_decay", "schedule"]
RUN = [*SETTING, "seed"]
FIGURES = ["latent_magnitude", "cut_off", "gradient_magnitude", "flips_per_step"]
SUMMARY = ["latent_magnitude", "cut_off", "gradient_early", "gradient_late", "flips_early", "flips_late"]
STYLES = {"constant": "-", "cosine": "--"}
COLOUR_OF = {"constant": COLOURS[6], "cosine": COLOURS[3]}
# Early and late in training: the first and the last of so many equal parts of what was traced.
PARTS = 5
GRADIENT, FLIPS = "gradient magnitude, mean |dL/dW|", "flips per step (weights)"


@dataclass(frozen=True, kw_only=True)
class Decay(TrainingExperiment):
    """Which runs to do, each at a constant and at a cosine learning rate. An option that is not given takes the
    recipe's value."""

    name = "decay"
    about = "Compare weight decays, and a constant with a cosine learning rate."
    claim = (
        "a higher weight decay makes latent weights and their cut-off smaller and, at a constant rate, flips more; "
        "a cosine rate makes gradients smaller and flips fewer as training goes on"
    )
    # In the 200 steps of the quick one weight decay shows only where it is strong.
    recipes: ClassVar = {
        "quick": Recipe(
            "digits", ("conv2",), ("bihalf",), 3, 10, {**QUICK, "trace": 5}, varied={"weight_decay": (0.0, 1e-3, 1e-2)}
        ),
        "paper": Recipe(
            "cifar10",
            ("conv2",),
            ("bihalf",),
            5,
            100,
            {**PAPER, "trace": 100},
            varied={"weight_decay": (0.0, 1e-4, 5e-4)},
        ),
    }
    needs = (TRACE,)
    binary = True

    weight_decays: list[float] = field(default_factory=list)
    """weight decays to compare, e.g. 0 1e-4 5e-4 (default: the recipe's)"""
    out: str = "runs/decay"
    """folder for runs, table, figure and curves"""

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        decays = self.weight_decays or self.chosen_recipe().varied["weight_decay"]
        grid = Grid([{"weight_decay": decay} for decay in decays], [{"schedule": how} for how in STYLES])
        return self.runs_of(lambda method: grid)

    def outcome(self, results: Results) -> Outcome:
        records = having(results.records, results.trace)
        steps = per_step(records, results.trace)
        runs = per_run(records, steps)
        return Outcome(
            rows=rows_of(runs), figure=draw(steps), curves=curves_of(steps), finding=finding_of(runs), steps=steps
        )


def per_step(records: list[Row], trace: pd.DataFrame) -> pd.DataFrame:
    """A row for each traced step of each finished run: figures of the whole network.

    trace: as `read_trace` has it. Columns: those of `RUN`, step, latent_magnitude (mean abs W over all weights),
    cut_off (mean over all filters of its magnitude), gradient_magnitude (mean abs dL/dW over all weights), and
    flips_per_step (of all layers, in weights, since the traced step before).
    """
    measured = ["step", "weights", "connections", *FIGURES[:3], "flips_to_positive", "flips_to_negative"]
    layers = finished_traces(records, trace, measured, RUN)
    layers["filters"] = layers["weights"] / layers["connections"]
    layers["flips"] = layers["flips_to_positive"] + layers["flips_to_negative"]
    count_of = {"latent_magnitude": "weights", "gradient_magnitude": "weights", "cut_off": "filters"}
    for figure, count in count_of.items():
        layers[figure] *= layers[count]
    steps = layers.groupby([*RUN, "step"], sort=False)[[*count_of, "weights", "filters", "flips"]].sum().reset_index()
    for figure, count in count_of.items():
        steps[figure] /= steps[count]
    since = steps.groupby(RUN, sort=False)["step"].diff().fillna(steps["step"])
    steps["flips_per_step"] = steps["flips"] / since
    return steps[[*RUN, "step", *FIGURES]]


def per_run(records: list[Row], steps: pd.DataFrame) -> pd.DataFrame:
    """A row for each run: its fields of `RUN`, figures and test top-1 in percent; NaN for a run that diverged.

    latent_magnitude and cut_off are those of the last step; the gradient magnitude and the flips a step are means over
    the first and over the last fifth of training.
    """
    runs = summarise_runs(records, steps, _summary, SUMMARY, RUN)
    return runs.assign(**{TOP1: [record.get(TOP1) for record in records]})


def rows_of(runs: pd.DataFrame) -> list[Row]:
    """A row for each weight decay and schedule: means over the finished trials. runs: as `per_run` has them."""
    rows = []
    for setting, trials in runs.groupby(SETTING):
        finished = trials.dropna(subset=TOP1)
        counts = {"trials": len(finished), "diverged": len(trials) - len(finished)}
        figures = {**finished[[*SUMMARY, TOP1]].mean(), f"{TOP1}_std": finished[TOP1].std()}
        rows.append(dict(zip(SETTING, setting, strict=True)) | counts | figures)
    return rows


def finding_of(runs: pd.DataFrame) -> str:
    """One line: what the highest weight decay changes against the lowest, and the cosine rate against the constant.

    A change is called one where it has the same direction in every pair of runs of equal seed.
    """
    return "; ".join(_finding_of(group, part) for group, part in runs.groupby(GROUP, sort=False))


def curves_of(steps: pd.DataFrame) -> Curves:
    """Means over the trials by step, for TensorBoard; a tag is figure/network-data-method-decay-schedule."""
    curves: Curves = {}
    for (model, data, method, decay, schedule), trials in steps.groupby(SETTING):
        label = f"{model}-{short_data(data)}-{method}-decay{decay:g}-{schedule}"
        for figure, means in trials.groupby("step")[FIGURES].mean().items():
            curves[f"{figure}/{label}"] = list(means.items())
    return curves


def draw(steps: pd.DataFrame) -> Figure:
    """The five panels of Fig. 3, (a) to (e), for each network and method. steps: as `per_step` has them.

    Dashes stand for the cosine rate; bands reach from the lowest to the highest of the trials.
    """
    groups = list(steps.groupby(GROUP, sort=False))
    figure = Figure(figsize=(13, 7.2 * max(len(groups), 1)), layout="constrained")
    if not groups:
        figure.text(0.5, 0.5, "no run finished", ha="center")
        return figure
    for place, (group, part) in zip(figure.subfigures(len(groups), 1, squeeze=False).flat, groups, strict=True):
        place.suptitle(_name(group))
        panels = place.subplot_mosaic([["a", "b", "c"], ["d", "e", "e"]])
        decays = sorted(part["weight_decay"].unique())
        colour_of = dict(zip(decays, COLOURS * len(decays), strict=False))
        constant = part[part["schedule"] == "constant"]
        middle = part[part["weight_decay"] == decays[len(decays) // 2]]
        at_middle = f"weight decay {decays[len(decays) // 2]:g}"
        _draw_magnitudes(panels["a"], constant, colour_of)
        _draw_settings(panels["b"], middle, "gradient_magnitude", colour_of)
        panels["b"].set(title=f"(b) gradients: {at_middle}", ylabel=GRADIENT, yscale="log")
        for letter, title, shown in (
            ("c", "flips: constant rate", constant),
            ("d", f"flips: {at_middle}", middle),
            ("e", "flips: weight decay and rate together", part),
        ):
            _draw_settings(panels[letter], shown, "flips_per_step", colour_of)
            # Late in training whole stretches are without a flip, which a plain logarithm could not show.
            panels[letter].set_yscale("symlog", linthresh=1)
            panels[letter].set(title=f"({letter}) {title}", ylabel=FLIPS)
            panels[letter].set_ylim(bottom=0)
        for panel in panels.values():
            panel.set_xlabel(STEP)
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small", ncols=2 if panel is panels["e"] else 1)
    trials = steps["seed"].nunique()
    spread = f"means of {trials} trials, bands from the lowest to the highest" if trials > 1 else "one trial"
    figure.supxlabel(spread, **FOOTNOTE)
    return figure


def _draw_magnitudes(panel: Axes, part: pd.DataFrame, colour_of: dict[float, str]) -> None:
    """Panel (a). part: of the constant rate."""
    for decay, trials in part.groupby("weight_decay"):
        draw_mean(panel, trials, "step", "latent_magnitude", color=colour_of[decay], label=f"weight decay {decay:g}")
        draw_mean(panel, trials, "step", "cut_off", color=colour_of[decay], linestyle=":")
    panel.set(title="(a) magnitudes: constant rate", ylabel="magnitude of latent weights", yscale="log")
    for name, style in (("mean |W|", "-"), ("|cut-off| between the signs", ":")):
        panel.plot([], [], style, color="0.3", label=name)


def _draw_settings(panel: Axes, part: pd.DataFrame, figure: str, colour_of: dict[float, str]) -> None:
    """A curve of this figure for each weight decay and schedule, named by what differs among them."""
    decays, schedules = part["weight_decay"].nunique(), part["schedule"].nunique()
    by_decay = decays > 1 or schedules == 1
    for (decay, schedule), trials in part.groupby(["weight_decay", "schedule"]):
        names = [f"weight decay {decay:g}"] * by_decay + [f"{schedule} rate"] * (schedules > 1)
        colour = colour_of[decay] if by_decay else COLOUR_OF[schedule]
        draw_mean(panel, trials, "step", figure, label=", ".join(names), color=colour, linestyle=STYLES[schedule])


def _summary(part: pd.DataFrame) -> dict[str, float]:
    """The figures of `SUMMARY` of one run. part: its traced steps."""
    steps = part["step"]
    since = steps.diff().fillna(steps)
    last = steps.iloc[-1]
    early = steps <= max(last / PARTS, steps.iloc[0])
    late = steps > min(last - last / PARTS, last - since.iloc[-1])
    flips = part["flips_per_step"] * since
    return {
        "latent_magnitude": part["latent_magnitude"].iloc[-1],
        "cut_off": part["cut_off"].iloc[-1],
        "gradient_early": part["gradient_magnitude"][early].mean(),
        "gradient_late": part["gradient_magnitude"][late].mean(),
        "flips_early": flips[early].sum() / since[early].sum(),
        "flips_late": flips[late].sum() / since[late].sum(),
    }


def _finding_of(group: tuple[str, ...], runs: pd.DataFrame) -> str:
    finished = runs.dropna(subset=TOP1)
    if finished.empty:
        return f"{_name(group)}: all {len(runs)} runs diverged"
    lowest, highest = finished["weight_decay"].min(), finished["weight_decay"].max()
    at_constant = finished[finished["schedule"] == "constant"].set_index("seed")
    low, high = (at_constant[at_constant["weight_decay"] == decay] for decay in (lowest, highest))
    constant, cosine = (
        finished[finished["schedule"] == schedule].set_index(["weight_decay", "seed"]) for schedule in STYLES
    )
    parts = []
    if lowest < highest:
        changes = _changes(low, high, "latent_magnitude", "cut_off", "flips_late")
        parts.append(f"from weight decay {lowest:g} to {highest:g} at a constant rate {changes}")
    else:
        parts.append("what weight decay does takes finished runs of two of its values")
    parts.append(f"from a constant to a cosine rate {_changes(constant, cosine, 'flips_late', 'gradient_late')}")
    if len(cosine):
        parts.append(
            f"while training at a cosine rate the gradient {_change(cosine, 'gradient_early', 'gradient_late')}"
        )
    if finished["seed"].nunique() < 2:
        parts.append("fewer than two trials are too little to tell these from chance")
    if len(finished) < len(runs):
        parts.append(f"{len(runs) - len(finished)} of {len(runs)} runs diverged")
    return f"{_name(group)}: {', '.join(parts)}"


NAMES = {
    "latent_magnitude": "the latent magnitude",
    "cut_off": "the cut-off",
    "gradient_late": "the late gradient",
    "flips_late": "the late flip count a step",
}


def _changes(before: pd.DataFrame, after: pd.DataFrame, *figures: str) -> str:
    """How figures change, by means over the pairs of runs that have the same index."""
    both = before.merge(after, left_index=True, right_index=True, suffixes=("_before", "_after"))
    if both.empty:
        return "nothing can be compared, for want of finished pairs of runs"
    told = [f"{NAMES[figure]} {_change(both, f'{figure}_before', f'{figure}_after')}" for figure in figures]
    return " and ".join([", ".join(told[:-1]), told[-1]])


def _change(pairs: pd.DataFrame, before: str, after: str) -> str:
    """What becomes of one column of the pairs in another."""
    old, new = pairs[before], pairs[after]
    verb = "rises" if (new > old).all() else "falls" if (new < old).all() else "does not change consistently"
    return f"{verb} ({old.mean():.3g} to {new.mean():.3g})"


def _name(group: tuple[str, ...]) -> str:
    model, data, method = group
    return f"{model}, {short_data(data)}, {method}"


if __name__ == "__main__":
    run_command(Decay.main)

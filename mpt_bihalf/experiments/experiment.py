"""What every experiment is: options that become runs, and what is told of their results."""

# No postponed annotations: simple_parsing looks for their names in the module of the base class.

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import ClassVar

from ..commandline import parse, words
from ..files import output_folder
from ..methods import find_method
from ..report.outcome import Outcome, conclude
from ..sweep.engines import EngineOptions, check_engine
from ..sweep.plan import MOST_RUNS
from ..sweep.records import write_results
from ..sweep.run_all import run_all
from ..training import Callback, Run
from ..training.config import cores_for
from .grid import Grid, Setting
from .recipe import Recipe
from .results import Results

MOST_TRIALS = 10_000


class Experiment:
    """A dataclass of options and what is done with them: `run()` from a program, `main()` as a command.

    A subclass says its `name`, what it is `about`, its `claim`, and by `outcome` what its results show.
    """

    name: ClassVar[str]
    """of the files it leaves"""
    about: ClassVar[str]
    """what it does, for its --help"""
    claim: ClassVar[str]
    """what the paper, or theory, says: one line"""
    out: str

    @classmethod
    def main(cls) -> None:
        """Do what the command line asks for."""
        parse(cls, cls.about).run()

    def run(self, callbacks: Iterable[Callback] = ()) -> None:
        """Do what is missing, write the outcome below `out` and print it.

        callbacks: told here of the runs that are done now, in whatever process. Raises ValueError, naming the option at
        fault, before any file is written.
        """
        self.conclude(self.results(output_folder(self.out), callbacks))

    def results(self, out: Path, callbacks: Iterable[Callback] = ()) -> Results:
        """What there is to look at below `out`."""
        return Results(out, [])

    def outcome(self, results: Results) -> Outcome:
        """What the results show."""
        raise NotImplementedError

    def conclude(self, results: Results) -> None:
        """Write the outcome and print it."""
        conclude(results.out, self.name, self.outcome(results), self.claim, runs=bool(results.runs))


@dataclass(frozen=True, kw_only=True)
class TrainingExperiment(Experiment, EngineOptions):
    """Which runs to do. An option that is not given takes the recipe's value."""

    recipes: ClassVar[dict[str, Recipe]]
    needs: ClassVar[tuple[str, ...]] = ()
    """files of each run, beside its result, that the outcome is made from, as `run_all` has them"""
    binary: ClassVar[bool] = False
    """whether it looks at binary weights, so that methods without them are refused"""
    lists_runs: ClassVar[bool] = False
    """whether `results.csv`, a row a run, is left too"""

    models: list[str] = field(default_factory=list)
    """networks, e.g. conv2 conv4 (default: the recipe's)"""
    methods: list[str] = field(default_factory=list)
    """methods, e.g. sign bihalf mpt-sign (default: the recipe's)"""
    data: str = ""
    """digits, fashion-mnist, cifar10, cifar100, folder:PATH or imagenet:PATH (default: the recipe's)"""
    data_root: str = ""
    """where data sets lie or are downloaded to (default: the user's cache folder)"""
    image_size: int | None = None
    """resize images to this many pixels a side on load; 0 keeps their size (default: the recipe's)"""
    augment: str | None = None
    """of training images: standard (flip and crop-padding on), none (both off), or auto, which is none for digits and
    standard for the other data sets; after auto also augmix or gaussian (default: the recipe's)"""
    flip: str | None = None
    """mirror training images left to right half the time: on, off (where classes differ by left and right), or auto, as
    augment says (default: the recipe's)"""
    crop_padding: str | None = None
    """pad training images by black and crop them at random: on, off, or auto, as augment says (default: the
    recipe's)"""
    width: float | None = None
    """what the networks' hidden channels are multiplied by (default: the recipe's)"""
    epochs: int | None = None
    """passes over the training set, a run (default: the recipe's)"""
    trials: int | None = None
    """runs of each setting, with seeds counted up from --seed (default: the recipe's)"""
    seed: int = 0
    """seed of the first trial"""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, or any torch device"""
    threads: int | None = None
    """CPU threads of a run; 0: the cores divided among the jobs, with ray 1 (default: the recipe's)"""
    recipe: str = "quick"
    """quick: minutes on the embedded data; paper: the paper's own settings"""
    out: str = "runs"
    """folder for runs, tables and figures"""

    def results(self, out: Path, callbacks: Iterable[Callback] = ()) -> Results:
        """Do the runs that are missing; the results of all."""
        runs = self.runs()
        run_all(runs, out, self, self.needs, callbacks)
        return Results(out, runs)

    def conclude(self, results: Results) -> None:
        if self.lists_runs:
            write_results(results.out, results.records)
        super().conclude(results)

    def runs(self) -> list[Run]:
        """All runs, each once, trials innermost. Raises ValueError, naming the option at fault."""
        return self.runs_of()

    def runs_of(self, vary: Callable[[str], Grid | Iterable[Setting]] = lambda method: Grid()) -> list[Run]:
        """All runs, each once, trials innermost; `vary` gives the settings of a method, as fields of a run.

        Raises ValueError, naming the option at fault, and for more than `MOST_RUNS` before any is made.
        """
        check_engine(self)
        recipe = self.chosen_recipe()
        trials = recipe.trials if self.trials is None else self.trials
        if not 1 <= trials <= MOST_TRIALS:
            raise ValueError(f"trials must lie in 1 to {MOST_TRIALS:,}, not {trials}")
        settings = {
            **recipe.run,
            "data": self.data or recipe.data,
            "data_root": self.data_root,
            "epochs": recipe.epochs,
            "device": self.device,
        }
        options = ("epochs", "image_size", "width", "augment", "flip", "crop_padding")
        given = {name: getattr(self, name) for name in options}
        given = {name: value for name, value in given.items() if value is not None}
        if self.threads is not None:
            settings["threads"] = self.threads
        if not settings.get("threads"):
            settings["threads"] = 1 if self.chosen == "ray" else cores_for(self.jobs or 1)
        models, methods = words(self.models) or recipe.models, words(self.methods) or recipe.methods
        for method in methods:
            if find_method(method).binarizer is None and self.binary:
                raise ValueError(f"method {method!r} has no binary weights to look at: leave it out")
        varied = {method: vary(method) for method in methods}
        grids = {method: some if isinstance(some, Grid) else Grid([*some]) for method, some in varied.items()}
        count = len(models) * sum(grids[method].count for method in methods) * trials
        if count > MOST_RUNS:
            raise ValueError(
                f"the grid has {count:,} runs, and {MOST_RUNS:,} are the most: give fewer values, or split it"
            )
        found: dict[Run, None] = {}
        for model, method in product(models, methods):
            for changes in grids[method]:
                own = {**recipe.of_model.get(model, {}), **recipe.of_method.get(method, {}), **given}
                run = Run(**{**settings, **own, **changes, "model": model, "method": method})
                for trial in range(trials):
                    trial_run = replace(run, seed=self.seed + trial)
                    found[trial_run.resolved(here=self.chosen != "ray")] = None
        return list(found)

    def chosen_recipe(self) -> Recipe:
        """The recipe of the name given; ValueError for another."""
        if self.recipe not in self.recipes:
            raise ValueError(f"unknown recipe {self.recipe!r}; known: {', '.join(self.recipes)}")
        return self.recipes[self.recipe]

"""Finished runs on corrupted test images: accuracy by corruption and severity."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from ..commandline import words
from ..data import Dataset, evaluation_batches
from ..data.corrupted import SEVERITIES, Corrupted, is_to_make, make_corrupted
from ..endings import run_command, tell
from ..files import expanded, parse_json, read_bytes, refuse_links, write_json
from ..report.figures import COLOURS, MARKERS
from ..report.outcome import Outcome
from ..sums import sum_of
from ..sweep import find_runs
from ..sweep.records import run_folder
from ..sweep.varied import varied_fields
from ..training import Callback, Run
from ..training.log import RESULT
from ..training.names import as_word
from ..training.step import evaluate
from .experiment import Experiment
from .results import Results

CLEAN = "none"


@dataclass(frozen=True, kw_only=True)
class Robustness(Experiment):
    """Which runs to look at, and on which images."""

    name = "robustness"
    about = "Evaluate the finished runs of a sweep on corrupted test images: CIFAR-10-C's, or a library's."
    claim = (
        "Diffenderfer et al. 2021: compressing a network, as multi-prize tickets do, can improve its accuracy on "
        "corrupted images"
    )
    files: ClassVar = "robustness-runs"

    out: str = "runs/prune_sweep"
    """folder of a sweep whose finished runs have their checkpoints still; table and figure go there too"""
    corrupted: str = ""
    """folder with the files of CIFAR-10-C, NAME.npy and labels.npy (default: `corrupted` in OUT, which is made by
    imagecorruptions-imaug where it is not there)"""
    names: list[str] = field(default_factory=list)
    """corruptions, e.g. fog brightness (default: all that are there)"""
    images: int = 0
    """of each corruption and severity so many, the first ones; 0: all"""

    def results(self, out: Path, callbacks: Iterable[Callback] = ()) -> Results:
        """Those of the runs that lie there."""
        if self.images < 0:
            raise ValueError(f"images must be at least 0, not {self.images}")
        return Results(out, find_runs(out))

    def outcome(self, results: Results) -> Outcome:
        runs = results.finished
        if not runs:
            raise ValueError(f"no finished run lies in {self.out}")
        if len({(run.data, run.image_size) for run in runs}) > 1:
            raise ValueError(f"the runs in {self.out} are of several data sets: give a folder with runs of one")
        images = self.corrupted_images(results)
        names = words(self.names) or images.names
        for name in names:
            if name not in images.names:
                raise ValueError(
                    f"there is no corruption {name!r} in {images.folder}; there are {', '.join(images.names)}"
                )
        if diverged := len(results.records) - len(runs):
            tell(f"left out: {diverged:,} runs that diverged")
        frame = self.measured(results, runs, images, names)
        rows = rows_of(frame)
        apart, clean = "", len(results.data.test)
        if clean != images.count:
            apart = f"; {clean:,} images are clean, and {images.count:,} of each corruption and severity"
        return Outcome(
            rows=rows,
            figure=draw(frame, images.called),
            curves=None,
            finding=finding_of(rows, names, images.called),
            note=f"corrupted: mean test top-1 over {len(names)} corruptions by {images.called} at severities 1 to "
            f"{SEVERITIES}; std: over trials{apart}",
            steps=frame,
        )

    def corrupted_images(self, results: Results) -> Corrupted:
        """Those that the options name; by default they are made, once."""
        if self.corrupted:
            return Corrupted(expanded(self.corrupted), results.data)
        folder = results.out / "corrupted"
        if is_to_make(folder):
            tell(f"no corrupted images lie in {folder}, or not all: they are made, once")
            refuse_links(folder, results.out)
            make_corrupted(folder, results.data, lambda names: iter(tqdm(names, desc="corruptions", disable=None)))
        return Corrupted(folder, results.data)

    def measured(self, results: Results, runs: list[Run], images: Corrupted, names: list[str]) -> pd.DataFrame:
        """A row for each run, corruption and severity; figures that are known are not worked out again."""
        first = min(self.images, images.count) or images.count
        of, rows = f"{images.digest()} {first}", list[dict[str, Any]]()
        fields = varied_fields([vars(run) for run in runs])
        refuse_links(results.out / self.files, results.out)
        (results.out / self.files).mkdir(parents=True, exist_ok=True)
        wanted = {CLEAN: [0], **{name: [*range(1, SEVERITIES + 1)] for name in names}}
        for run in tqdm(runs, desc="runs", unit="run", disable=None):
            folder = run_folder(results.out, run)
            kept = Kept(results.out / self.files / f"{folder.name}.json", sum_of(read_bytes(folder / RESULT)))
            figures = kept.figures(of)
            left = {name: [s for s in of_name if _key(name, s) not in figures] for name, of_name in wanted.items()}
            if any(left.values()):
                network = results.network(run)
                if network is None:
                    continue
                for name, severities in left.items():
                    for severity in severities:
                        figures[_key(name, severity)] = top1_on(*network, run, images, name, severity, first)
                    kept.write()
            setting: dict[str, Any] = {name: as_word(getattr(run, name)) for name in fields} or {"method": run.method}
            for name, severities in wanted.items():
                for severity in severities:
                    measured = {"corruption": name, "severity": severity, "test_top1": figures[_key(name, severity)]}
                    rows.append({**setting, "seed": run.seed, **measured})
        if not rows:
            raise ValueError(f"no finished run in {self.out} has its checkpoint still")
        return pd.DataFrame(rows)


def _key(name: str, severity: int) -> str:
    return f"{name} {severity}"


class Kept:
    """The figures of a run that are known, in a file: by the images that they are of, and by corruption and severity.

    result: the sum of the run's result, which they belong to.
    """

    def __init__(self, file: Path, result: str) -> None:
        self._file = file
        self._content: dict[str, Any] = {"result": result, "test_top1": {}}
        with suppress(FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            content = parse_json(read_bytes(file), file)
            every = [figure for figures in content["test_top1"].values() for figure in figures.values()]
            if content["result"] == result and all(type(figure) is float and 0 <= figure <= 100 for figure in every):
                self._content = content

    def figures(self, of: str) -> dict[str, float]:
        """Those of these images, to be added to."""
        figures: dict[str, float] = self._content["test_top1"].setdefault(of, {})
        return figures

    def write(self) -> None:
        """Keep what there is."""
        write_json(self._file, self._content)


def top1_on(model: Any, dataset: Dataset, run: Run, images: Corrupted, name: str, severity: int, first: int) -> float:
    """Test top-1 in percent on a corruption at a severity, or on the test images themselves."""
    if name == CLEAN:
        few = first < images.count
        some = dataset.test.take(torch.arange(min(first, len(dataset.test)))) if few else dataset.test
    else:
        some = images.images(name, severity, first).to(dataset.device)
    return evaluate(model, evaluation_batches(some, dataset), "test", run.precision)[0]["test_top1"]


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each setting: mean top-1 on clean and on corrupted images, its deviation over trials, by severity."""
    fields = [name for name in frame if name not in ("seed", "corruption", "severity", "test_top1")]
    rows = []
    for setting, block in frame.groupby(fields, sort=False):
        clean, other = block[block["severity"] == 0], block[block["severity"] > 0]
        by_seed = other.groupby("seed")["test_top1"].mean()
        row: dict[str, Any] = dict(zip(fields, setting, strict=True)) | {"trials": len(by_seed)}
        row |= {"clean": clean["test_top1"].mean(), "corrupted": by_seed.mean(), "std": by_seed.std()}
        rows.append(row | {f"severity {s}": part["test_top1"].mean() for s, part in other.groupby("severity")})
    return rows


def draw(frame: pd.DataFrame, called: str) -> Figure:
    """Test top-1 by severity, the mean over corruptions, and by corruption, the mean over severities."""
    fields = [name for name in frame if name not in ("seed", "corruption", "severity", "test_top1")]
    figure = Figure(figsize=(11.5, 5.6), layout="constrained")
    by_severity, by_name = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.6))
    names = [name for name in dict.fromkeys(frame["corruption"]) if name != CLEAN]
    settings = [*frame.groupby(fields, sort=False)]
    for place, (setting, block) in enumerate(settings):
        style: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        means = block.groupby("severity")["test_top1"].mean()
        by_severity.plot(means.index, means, label=", ".join(map(str, setting)), **style)
        of_name = block[block["severity"] > 0].groupby("corruption")["test_top1"].mean()[names]
        beside = (place - (len(settings) - 1) / 2) * 0.6 / len(settings)
        by_name.plot(np.arange(len(names)) + beside, of_name, linestyle="none", **style)
    by_severity.set(
        xlabel="severity (0: not corrupted)", ylabel="test top-1 accuracy (%)", title="mean over corruptions"
    )
    by_name.set(title="mean over severities", xlim=(-0.6, len(names) - 0.4))
    by_name.set_xticks(np.arange(len(names)), [name.replace("_", " ") for name in names], rotation=60, ha="right")
    for panel in (by_severity, by_name):
        panel.grid(alpha=0.3)
    figure.suptitle(f"corruptions: {called}", fontsize="medium")
    figure.legend(*by_severity.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def finding_of(rows: list[dict[str, Any]], names: list[str], called: str) -> str:
    """One line: the most accurate on corrupted images, and how much corruption costs."""

    def told(row: dict[str, Any]) -> str:
        return ", ".join(str(value) for name, value in row.items() if name not in NUMBERS)

    best, clean = max(rows, key=lambda row: row["corrupted"]), max(rows, key=lambda row: row["clean"])
    losses = [row["clean"] - row["corrupted"] for row in rows]
    return (
        f"on {len(names)} corruptions by {called} the most accurate is {told(best)} with {best['corrupted']:.2f} % "
        f"({best['clean']:.2f} % on clean images); the most accurate on clean images is {told(clean)} with "
        f"{clean['corrupted']:.2f} % ({clean['clean']:.2f} %); corruption costs {min(losses):.1f} to "
        f"{max(losses):.1f} points"
    )


NUMBERS = ("trials", "clean", "corrupted", "std", *(f"severity {severity}" for severity in range(1, SEVERITIES + 1)))

if __name__ == "__main__":
    run_command(Robustness.main)

"""Do the runs of a grid that are not done yet, one after the other, in this process."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from tqdm import tqdm

from ..data import Dataset, load_dataset
from ..training import Run, train
from ..training.loop import check_fits, check_network
from .records import read_result, run_folder


def run_all(runs: list[Run], out: Path) -> None:
    """Do what is missing of `runs` below `out`. ValueError for a run that cannot be, before any file is written."""

    @cache
    def data(name: str, root: str, image_size: int) -> Dataset:
        return load_dataset(name, root or None, image_size or None)

    missing = [run for run in runs if read_result(run_folder(out, run), run) is None]
    settings = list(dict.fromkeys(replace(run, seed=0) for run in missing))
    for run in settings:
        check_network(run)
    for run in settings:
        check_fits(run, data(run.data, run.data_root, run.image_size))
    done = len(runs) - len(missing)
    if done:
        print(f"{done} of {len(runs)} runs are done already")
    with tqdm(total=len(runs), initial=done, desc="sweep", unit="run", disable=None) as bar:
        for number, run in enumerate(missing, done + 1):
            result = train(run, run_folder(out, run), data(run.data, run.data_root, run.image_size))
            bar.update()
            top1 = f"test top-1 {result['test_top1']:.2f} %" if "test_top1" in result else result["status"]
            tqdm.write(f"[{number}/{len(runs)}] {run.name}: {top1}")

"""How far a run is, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from tqdm import tqdm

from .config import Run


class Progress(NamedTuple):
    """How far a run is: training steps done of all it takes, and after an epoch the figures of it."""

    step: int
    steps: int
    figures: dict[str, Any] | None = None


Tell = Callable[[Progress], object]


@contextmanager
def telling(run: Run, tell: Tell | None, done: int, total: int) -> Iterator[Tell]:
    """Whom to tell how far the run is: a progress bar, from `done` of `total` steps on, if nobody is named."""
    if tell is not None:
        yield tell
        return
    with tqdm(desc=run.name, total=total, initial=done, unit="step", leave=False, disable=None) as bar:
        yield partial(show_progress, bar)


def show_progress(bar: tqdm, progress: Progress) -> None:
    """Move a run's progress bar on, with the last epoch's figures beside it."""
    bar.update(progress.step - bar.n)
    if progress.figures is not None:
        top1, loss = progress.figures["test_top1"], progress.figures["train_loss"]
        bar.set_postfix({"test top-1": f"{top1:.2f}%", "loss": f"{loss:.3f}"})

from __future__ import annotations

import io

from tqdm import tqdm

from mpt_bihalf.training import Progress, Run
from mpt_bihalf.training.progress import show_progress, telling


def test_the_bar_stands_at_the_step_under_way_beside_the_last_figures() -> None:
    with tqdm(total=8, initial=3, file=io.StringIO()) as bar:
        show_progress(bar, Progress(5, 8))
        assert (bar.n, bar.postfix) == (5, None)
        show_progress(bar, Progress(5, 8, {"test_top1": 93.75, "train_loss": 0.25}))
        assert (bar.n, bar.postfix) == (5, "test top-1=93.75%, loss=0.250")


def test_who_is_named_is_told_as_it_comes() -> None:
    told: list[Progress] = []
    with telling(Run(), told.append, 0, 8) as tell:
        tell(Progress(1, 8))
    assert told == [Progress(1, 8)]

"""One run: its configuration, the loop, checkpoints, logs."""

from .config import Run
from .loop import Diverged, Progress, train, train_step

__all__ = ["Diverged", "Progress", "Run", "train", "train_step"]

"""One run: its configuration, the loop, checkpoints, logs."""

from .config import Run
from .loop import Diverged, train, train_step

__all__ = ["Diverged", "Run", "train", "train_step"]

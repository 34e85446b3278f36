"""One run: its configuration, the loop, checkpoints, logs."""

from .config import Run
from .loop import Diverged, train
from .progress import Progress
from .step import train_step

__all__ = ["Diverged", "Progress", "Run", "train", "train_step"]

"""One run: its configuration, the loop, checkpoints, logs."""

from .callbacks import Callback, Epoch, Progress, ProgressBar
from .config import Run
from .loop import Diverged, train
from .step import train_step

__all__ = ["Callback", "Diverged", "Epoch", "Progress", "ProgressBar", "Run", "train", "train_step"]

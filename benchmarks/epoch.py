"""A whole epoch of training against the published pipeline written plainly.

That pipeline reads one image after the other through torchvision's transforms in a DataLoader with worker processes,
and takes the plainly written step of benchmarks/plain.py. Both train the same network on the same images, in turn.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch
from measuring import in_turn, median_ratio, show
from plain import plain, plain_optimizer, plain_step
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as PerImage
from torchvision import transforms

from mpt_bihalf import create_model
from mpt_bihalf.commandline import parse
from mpt_bihalf.data import Dataset, ImageSet, training_batches
from mpt_bihalf.devices import keep_freed_memory
from mpt_bihalf.endings import run_command
from mpt_bihalf.training.build import build_network, build_optimizer
from mpt_bihalf.training.config import Run
from mpt_bihalf.training.step import train_step

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Which epoch to time."""

    model: str = "conv2"
    """network"""
    method: str = "mpt-bihalf"
    """method"""
    compute: str = "auto"
    """how our layers compute: dense, sparse, or auto, as a run of this rate does on this machine"""
    prune_rate: float = 0.9
    """fraction pruned"""
    images: int = 2560
    """images in the epoch, of 32x32x3 (CIFAR-10 has 50,000)"""
    batch_size: int = 128
    """images a step"""
    workers: int = 2
    """worker processes of the plain pipeline"""
    rounds: int = 3
    """epochs of each, in turn"""
    json: bool = False
    """print JSON"""


class Images(PerImage):  # type: ignore[type-arg]
    """One image at a time through torchvision's transforms, as the published codes read CIFAR."""

    def __init__(self, pixels: np.ndarray, labels: list[int]) -> None:
        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pixels[index]), self.labels[index]


def main() -> None:
    options = parse(Epoch, "A whole epoch against the published pipeline written plainly, A B A B.")
    keep_freed_memory()
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (options.images, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.randint(10, (options.images,), generator=g)
    classes = tuple("0123456789")
    dataset = Dataset("random", ImageSet(images, labels), ImageSet(images[:1], labels[:1]), classes, MEAN, STD, 4, True)
    asked = {"model": options.model, "method": options.method, "prune_rate": options.prune_rate}
    run = Run(**asked, compute=options.compute, device="cpu").resolved()
    model = build_network(run, 10, 3, 32)
    optimizer = build_optimizer(run, model)
    slow = plain(create_model(options.model, seed=0), options.method, options.prune_rate)
    slow_optimizer = plain_optimizer(slow)
    loader = DataLoader(
        Images(images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
    )

    def ours() -> None:
        for x, y in training_batches(dataset, options.batch_size, 0, 0):
            train_step(model, optimizer, x, y)

    def data_alone() -> None:
        for _ in training_batches(dataset, options.batch_size, 0, 0):
            pass

    def published() -> None:
        for x, y in loader:
            plain_step(slow, slow_optimizer, x, y)

    tasks = {"ours": ours, "data alone": data_alone, "published, plainly": published}
    seconds = in_turn(tasks, options.rounds, warm_up=1)
    rows = [
        {
            "pipeline": name,
            "s an epoch": statistics.median(times),
            "times ours": median_ratio(times, seconds["ours"]),
        }
        for name, times in seconds.items()
    ]
    show(rows, options.json)


if __name__ == "__main__":
    run_command(main)

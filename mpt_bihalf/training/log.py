"""What a run tells: figures of an epoch, measures of each layer, TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from .. import measures
from ..weights import binary_weights

Figures = dict[str, Any]


class LayerLog:
    """Measures of each binarized layer, once an epoch, with what changed since the epoch before."""

    def __init__(self, model: nn.Module) -> None:
        self._before = _signs(model)

    def measure(self, model: nn.Module, epoch: int) -> list[Figures]:
        """A row of figures for each layer: entropies in bits, shares in [0, 1], flips counted since the last call."""
        names, values = [], []
        now = _signs(model)
        for name, binary in now.items():
            flips = measures.flips(self._before[name], binary)
            figures = {
                "entropy": measures.entropy(binary),
                "filter_entropy": measures.filter_entropy(binary).mean(),
                "positive_share": measures.positive_share(binary),
                "kept": measures.kept_share(binary),
                "flips_to_positive": flips.to_positive,
                "flips_to_negative": flips.to_negative,
                "mask_change": measures.mask_change(self._before[name], binary),
            }
            names.append(name)
            values.append(torch.stack([value.float() for value in figures.values()]))
        read = torch.stack(values).tolist() if values else []  # the device is waited for once
        rows = [
            {"epoch": epoch, "layer": name, "weights": now[name].numel(), **dict(zip(figures, row, strict=True))}
            for name, row in zip(names, read, strict=True)
        ]
        self._before = now
        return rows


def _signs(model: nn.Module) -> dict[str, Tensor]:
    return {name: binary.to(torch.int8) for name, binary in binary_weights(model).items()}


class Curves:
    """TensorBoard curves of a run, in its folder. A resumed run goes on from `first_epoch`: later points go."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def add(self, figures: Figures, layers: list[Figures], lr: float) -> None:
        epoch = figures["epoch"]
        for name, value in figures.items():
            if name != "epoch":
                split, measure = name.split("_", 1)
                self._writer.add_scalar(f"{measure}/{split}", value, epoch)
        self._writer.add_scalar("learning_rate", lr, epoch)
        for row in layers:
            for name, value in row.items():
                if name not in ("epoch", "layer", "weights"):
                    self._writer.add_scalar(f"{name}/{row['layer']}", value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

"""What images a ticket's network is for: how they are standardised, and the class that each output means."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch

from ..data import Dataset
from ..sweep.records import is_number

Warn = Callable[[str], None]


@dataclass(frozen=True)
class ImageSpec:
    """The mean and std to standardise images by, and the names of the classes; None for what is not known.

    mean, std: one a channel, for pixels scaled to [0, 1]: a network takes (x - mean) / std. classes: in the order of
    its outputs.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None

    @classmethod
    def of(cls, told: dict[str, Any], architecture: dict[str, Any] | None = None) -> ImageSpec:
        """From values of these names, any of which may be missing or None.

        architecture: of the network that they are for, where it is known.

        Raises ValueError unless mean and std come together, with a finite float for each channel and std above 0, and
        classes are distinct names that are not empty, as many as the network tells apart.
        """
        mean, std, classes = (told.get(name) for name in ("mean", "std", "classes"))
        if (mean is None) != (std is None):
            raise ValueError("mean and std come together: give both, or neither")
        if mean is not None:
            mean, std = _by_channel("mean", mean), _by_channel("std", std)
            channels = len(mean) if architecture is None else architecture.get("in_channels")
            if not len(mean) == len(std) == channels:
                raise ValueError(f"{len(mean)} means and {len(std)} stds, and images of {channels} channels")
            if min(std) <= 0:
                raise ValueError(f"std must be above 0 in each channel, not {min(std)}")
        if classes is not None:
            classes = _names(classes)
            outputs = len(classes) if architecture is None else architecture.get("num_classes")
            if len(classes) != outputs:
                raise ValueError(f"{len(classes)} classes, and the network tells {outputs} apart")
        return cls(mean, std, classes)

    def known(self) -> dict[str, Any]:
        """What is known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def standardise(self, dataset: Dataset, warn: Warn) -> Dataset:
        """The data standardised by this mean and std; by their own, with a warning, where these are not known.

        Raises ValueError for data of another number of channels.
        """
        if self.mean is None or self.std is None:
            warn(
                "the ticket has no valid mean and std: images are standardised by those of "
                f"{dataset.name}, {statistics(dataset.mean, dataset.std)}"
            )
            return dataset
        return replace(dataset, mean=self.mean, std=self.std)

    def relabel(self, dataset: Dataset, warn: Warn) -> Dataset:
        """Data of as many classes, with these in this order; unchanged, with a warning, where the names are others."""
        if self.classes is None:
            warn(f"the ticket has no valid class names: its classes are matched by place with those of {dataset.name}")
            return dataset
        if sorted(self.classes) != sorted(dataset.classes):
            ours, theirs = next(pair for pair in zip(self.classes, dataset.classes, strict=True) if len({*pair}) > 1)
            warn(
                f"the ticket's classes have other names than those of {dataset.name}: they are matched by place, "
                f"{ours!r} with {theirs!r}"
            )
            return dataset
        place = {name: index for index, name in enumerate(self.classes)}
        places = torch.tensor([place[name] for name in dataset.classes], device=dataset.device)
        train, test = (replace(cast(Any, part), labels=places[part.labels]) for part in (dataset.train, dataset.test))
        return replace(dataset, train=train, test=test, classes=self.classes)


def statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """Mean and std of each channel as a line has them."""
    return "; ".join(
        f"{name} {', '.join(f'{value:.4g}' for value in values)}" for name, values in (("mean", mean), ("std", std))
    )


def _by_channel(name: str, values: Any) -> tuple[float, ...]:
    values = _plain(values)
    if not isinstance(values, list | tuple) or not values or not all(map(is_number, values)):
        raise ValueError(f"{name} must be a list of one finite number a channel, not {reprlib.repr(values)}")
    return tuple(map(float, values))


def _names(names: Any) -> tuple[str, ...]:
    names = _plain(names)
    texts = isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names)
    if not texts or len(set(names)) != len(names) or not names:
        raise ValueError(f"classes must be a list of distinct names, none of them empty, not {reprlib.repr(names)}")
    return tuple(names)


def _plain(values: Any) -> Any:
    """Of a tensor or NumPy's array the values."""
    return values.tolist() if hasattr(values, "tolist") else values

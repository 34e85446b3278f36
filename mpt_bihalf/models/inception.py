"""Inception-v3 (Szegedy et al. 2016) for small images: torchvision's channels, without strides in the stem.

Modules stand on maps of the image's size, its half and its quarter: 32, 16 and 8 pixels, nearly as the paper's 35, 17
and 8. Without the auxiliary head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from torch import nn

from .design import Design
from .parallel import Branches


class Conv(NamedTuple):
    """A convolution of so many filters with batch norm and ReLU."""

    filters: int
    size: int | tuple[int, int]
    stride: int = 1


class Pool(NamedTuple):
    """3x3 pooling."""

    kind: type[nn.MaxPool2d] | type[nn.AvgPool2d]
    stride: int


Step: TypeAlias = "Conv | Pool | Sequence[Chain]"  # branches side by side, the last one
Chain: TypeAlias = Sequence[Step]

AVERAGE, MAXIMUM = Pool(nn.AvgPool2d, 1), Pool(nn.MaxPool2d, 2)
STEM: Chain = [Conv(32, 3), Conv(64, 3), Conv(80, 1), Conv(192, 3)]


def mixed_5(pooled: int) -> Step:
    return [
        [Conv(64, 1)],
        [Conv(48, 1), Conv(64, 5)],
        [Conv(64, 1), Conv(96, 3), Conv(96, 3)],
        [AVERAGE, Conv(pooled, 1)],
    ]


def mixed_6(inner: int) -> Step:
    wide, high = (1, 7), (7, 1)
    return [
        [Conv(192, 1)],
        [Conv(inner, 1), Conv(inner, wide), Conv(192, high)],
        [Conv(inner, 1), Conv(inner, high), Conv(inner, wide), Conv(inner, high), Conv(192, wide)],
        [AVERAGE, Conv(192, 1)],
    ]


MIXED_6A: Step = [[Conv(384, 3, 2)], [Conv(64, 1), Conv(96, 3), Conv(96, 3, 2)], [MAXIMUM]]
MIXED_7A: Step = [
    [Conv(192, 1), Conv(320, 3, 2)],
    [Conv(192, 1), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2)],
    [MAXIMUM],
]
SPLIT: Step = [[Conv(384, (1, 3))], [Conv(384, (3, 1))]]
MIXED_7: Step = [
    [Conv(320, 1)],
    [Conv(384, 1), SPLIT],
    [Conv(448, 1), Conv(384, 3), SPLIT],
    [AVERAGE, Conv(192, 1)],
]
MODULES: Chain = [
    *(mixed_5(pooled) for pooled in (32, 64, 64)),
    MIXED_6A,
    *(mixed_6(inner) for inner in (128, 160, 160, 192)),
    MIXED_7A,
    MIXED_7,
    MIXED_7,
]


def inception_v3(design: Design) -> nn.Module:
    """21.8 million parameters for ten classes. Binary: sign right before each hidden convolution, and no ReLU."""
    first = design.channels(32)
    hidden, channels = _chain(design, first, [*STEM, *MODULES])
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(design.in_channels, first, 3, padding=1, bias=False),
            norm=_norm(design, first),
            hidden=hidden,
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(channels, design.num_classes),
        )
    )


def _chain(design: Design, channels: int, steps: Chain) -> tuple[nn.Module, int]:
    """The steps one after another on a map of so many channels, and the number that comes out."""
    layers: list[nn.Module] = []
    for step in steps:
        if isinstance(step, Pool):
            layers.append(step.kind(3, step.stride, padding=1))
        elif isinstance(step, Conv):
            outputs = design.channels(step.filters)
            height, width = (step.size, step.size) if isinstance(step.size, int) else step.size
            padding = height // 2, width // 2
            layer = nn.Conv2d(channels, outputs, (height, width), step.stride, padding, bias=False)
            layers.append(nn.Sequential(design.before_layer(), layer, _norm(design, outputs)))
            channels = outputs
        else:
            branches = [_chain(design, channels, chain) for chain in step]
            layers.append(Branches(branch for branch, _ in branches))
            channels = sum(outputs for _, outputs in branches)
    return nn.Sequential(*layers), channels


def _norm(design: Design, channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3), design.after_layer())

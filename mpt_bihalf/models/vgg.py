"""VGG16 (Simonyan & Zisserman 2015) and VGG-small (Zhang et al. 2018): batch norm, and one fully connected layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from .design import Design

SMALL = ((128, 128), (256, 256), (512, 512))
SIXTEEN = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg(groups: Sequence[Sequence[int]], bias: bool, average: bool) -> Callable[[Design], nn.Module]:
    """A builder of the network with these widths of 3x3 convolutions, 2x2 max pooling at the end of each group.

    Convolution, batch norm, ReLU, (pooling); binary: convolution, (pooling,) batch norm, sign. Where the image is so
    small that a single pixel comes to a pooling, that is left out.

    bias: whether convolutions have one. average: the last layer gets the mean of the map, not all of it.
    """

    def build(design: Design) -> nn.Module:
        height, width = design.image_size
        channels = design.in_channels
        layers: list[nn.Module] = []
        for group in groups:
            for index, count in enumerate(group, 1):
                layers.append(nn.Conv2d(channels, design.channels(count), 3, padding=1, bias=bias))
                channels = design.channels(count)
                norm = nn.BatchNorm2d(channels)
                pooling: list[nn.Module] = []
                if index == len(group) and min(height, width) > 1:
                    pooling, height, width = [nn.MaxPool2d(2)], height // 2, width // 2
                if design.binary:
                    layers += [*pooling, norm, design.before_layer()]
                else:
                    layers += [norm, design.after_layer(), *pooling]
        pixels = 1 if average else height * width
        return nn.Sequential(
            OrderedDict(
                features=nn.Sequential(*layers),
                avgpool=nn.AdaptiveAvgPool2d(1) if average else nn.Identity(),
                flatten=nn.Flatten(),
                classifier=nn.Linear(channels * pixels, design.num_classes),
            )
        )

    return build

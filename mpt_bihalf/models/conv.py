"""Conv2, Conv4, Conv6, Conv8: the small VGG-like networks of the lottery-ticket papers (Frankle & Carbin 2019)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def conv_network(depth: int) -> Callable[[int, int, tuple[int, int]], nn.Module]:
    """A builder of the network with `depth` convolutions.

    Pairs of 3x3 convolutions of width 64, 128, 256, 512, each followed by ReLU, 2x2 max pooling after each pair; then
    256, 256, classes fully connected. No biases. On 32x32x3 and 10 classes: 4,300,992 / 2,425,024 / 2,261,184 /
    5,275,840 weights.
    """
    pools = depth // 2

    def build(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
        height, width = image_size
        step = 2**pools
        if min(image_size) < step or height % step or width % step:
            raise ValueError(
                f"conv{depth} halves the image {pools} time{'s' * (pools > 1)}: "
                f"its size must be a multiple of {step}, not {height}x{width}"
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for pair in range(pools):
            for _ in range(2):
                layers += [nn.Conv2d(channels, 64 << pair, 3, padding=1, bias=False), nn.ReLU(inplace=True)]
                channels = 64 << pair
            layers.append(nn.MaxPool2d(2))
        layers += [
            nn.Flatten(),
            nn.Linear(channels * (height // step) * (width // step), 256, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(256, 256, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(256, num_classes, bias=False),
        ]
        return nn.Sequential(*layers)

    return build

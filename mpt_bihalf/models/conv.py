"""Conv2, Conv4, Conv6, Conv8: the small VGG-like networks of the lottery-ticket papers (Frankle & Carbin 2019)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .design import Design


def conv_network(depth: int) -> Callable[[Design], nn.Module]:
    """A builder of the network with `depth` convolutions.

    Pairs of 3x3 convolutions of width 64, 128, 256, 512, each followed by ReLU, 2x2 max pooling after each pair; then
    256, 256, classes fully connected. No biases. On 32x32x3 and 10 classes: 4,300,992 / 2,425,024 / 2,261,184 /
    5,275,840 weights.

    With binary activations (Diffenderfer & Kailkhura 2021) batch norm and sign stand in the place of ReLU, after the
    pooling at the end of a pair. In the blocks `norm-first` and `real-to-binary` they stand before each layer but the
    first and the last, and PReLU, with a slope for each channel, behind it, after the pooling.
    """
    pools = depth // 2

    def build(design: Design) -> nn.Module:
        height, width = design.image_size
        step = 2**pools
        if height % step or width % step:
            raise ValueError(
                f"conv{depth} halves the image {pools} time{'s' * (pools > 1)}: "
                f"its size must be a multiple of {step}, not {height}x{width}"
            )
        layers: list[nn.Module] = []
        norm_first = design.norm_first
        channels = design.in_channels
        for pair in range(pools):
            for pooling in ([], [nn.MaxPool2d(2)]):
                if norm_first and layers:
                    layers += [nn.BatchNorm2d(channels), design.before_layer(channels)]
                convolution = nn.Conv2d(channels, design.channels(64 << pair), 3, padding=1, bias=False)
                layers.append(design.around(convolution) if layers else convolution)
                channels = design.channels(64 << pair)
                if norm_first:
                    layers += [*pooling, nn.PReLU(channels)]
                elif design.binary:
                    layers += [*pooling, nn.BatchNorm2d(channels), design.before_layer(channels)]
                else:
                    layers += [design.after_layer(), *pooling]
        layers.append(nn.Flatten())
        units = channels * (height // step) * (width // step)
        for _ in range(2):
            if norm_first:
                layers += [nn.BatchNorm1d(units), design.before_layer(units)]
            layers.append(design.around(nn.Linear(units, design.channels(256), bias=False)))
            units = design.channels(256)
            if norm_first:
                layers.append(nn.PReLU(units))
                continue
            layers += [nn.BatchNorm1d(units), design.before_layer(units)] if design.binary else [design.after_layer()]
        last = nn.Linear(units, design.num_classes, bias=False)
        layers.append(last if norm_first else design.around(last))
        return nn.Sequential(*layers)

    return build

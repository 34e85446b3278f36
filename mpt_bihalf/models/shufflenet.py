"""ShuffleNet v1 with three groups (Zhang et al. 2018) for small images: a stem without strides."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from .design import Design
from .parallel import Branches

GROUPS = 3


class Unit(nn.Module):
    """1x1 convolution in groups, channel shuffle, 3x3 convolution of each channel, 1x1 convolution in groups.

    With stride 1 the input is added to what comes of it; with stride 2 its average pooling stands beside that.
    """

    def __init__(self, design: Design, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        inner = outputs // 4
        # Of a map that is put beside another one there is the less to make.
        made = outputs - inputs if stride > 1 else outputs
        branch = nn.Sequential(
            design.before_layer(),
            nn.Conv2d(inputs, inner, 1, groups=groups, bias=False),
            nn.BatchNorm2d(inner),
            design.after_layer(),
            nn.ChannelShuffle(GROUPS),
            design.before_layer(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            design.before_layer(),
            nn.Conv2d(inner, made, 1, groups=GROUPS, bias=False),
            nn.BatchNorm2d(made),
        )
        self.added = stride == 1
        self.branches = branch if self.added else Branches([nn.AvgPool2d(3, stride, padding=1), branch])
        self.after = design.after_layer()

    def forward(self, x: Tensor) -> Tensor:
        out = self.branches(x)
        return self.after(out + x if self.added else out)


def shufflenet(design: Design) -> nn.Module:
    """Stages of 4, 8 and 4 units, 240, 480 and 960 wide, each of which begins with a stride of 2.

    Binary: sign right before each hidden convolution, and no ReLU.
    """
    # Every unit's inner quarter is divided into the groups, and so is what its strided one adds to the stem's channels.
    width, channels = 4 * GROUPS * design.channels(20), GROUPS * design.channels(8)
    stem = nn.Conv2d(design.in_channels, channels, 3, padding=1, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=stem, bn1=nn.BatchNorm2d(channels), relu=design.after_layer()
    )
    for stage, (depth, outputs) in enumerate(((4, width), (8, 2 * width), (4, 4 * width)), 2):
        units: list[nn.Module] = []
        for unit in range(depth):
            groups = 1 if stage == 2 and unit == 0 else GROUPS  # the stem has too few channels to divide
            units.append(Unit(design, channels, outputs, 2 if unit == 0 else 1, groups))
            channels = outputs
        layers[f"stage{stage}"] = nn.Sequential(*units)
    layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["fc"] = nn.Linear(channels, design.num_classes)
    return nn.Sequential(layers)

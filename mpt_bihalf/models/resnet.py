"""ResNet-18, -34 and the wide ones, for small images and ImageNet's; with binary activations in Bi-Real net's shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from ..activation_modules import RPReLU
from .design import Design

SMALL = 64  # pixels a side up to which the stem leaves images as large as they are
# Narrow strided shortcuts pick their pixels before the convolution: there the CPU kernel of torch 2.14 can crash.
FEW = 8


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first of which has the stride (He et al. 2016), [N, C, H, W] in and out.

    Real: one shortcut round both. Binary: a shortcut round each, and the ReLU goes (Liu et al. 2018). In the block
    `norm-first` batch norm stands before each sign, and PReLU alone between convolution and addition; in `reactnet` an
    RPReLU follows each addition.

    downsample: the shortcut where the shape changes. norm: a layer for so many channels that follows a convolution.
    after: what follows an addition.
    """

    def __init__(
        self,
        design: Design,
        channels: tuple[int, int],
        stride: int,
        downsample: nn.Module,
        norm: Callable[[int], nn.Module],
        after: nn.Module,
    ) -> None:
        super().__init__()
        inputs, outputs = channels
        self.binary = design.binary
        self.before1 = before(design, inputs)
        self.conv1 = design.around(convolution(inputs, outputs, 3, stride))
        self.bn1 = norm(outputs)
        self.before2 = before(design, outputs)
        self.conv2 = design.around(convolution(outputs, outputs, 3))
        self.bn2 = norm(outputs)
        self.downsample = downsample
        self.after, self.after2 = after, None
        if design.block == "reactnet":
            self.after, self.after2 = RPReLU(outputs), RPReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        out = self.bn1(self.conv1(self.before1(x)))
        if self.binary:
            shortcut = out = self.after(out + shortcut)
        else:
            out = self.after(out)
        after = self.after if self.after2 is None else self.after2
        return after(self.bn2(self.conv2(self.before2(out))) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, the second of which has the stride, and one shortcut round them.

    channels: in, inner, out. The rest is as in `BasicBlock`.
    """

    def __init__(self, design: Design, channels: tuple[int, int, int], stride: int, downsample: nn.Module) -> None:
        super().__init__()
        inputs, inner, outputs = channels
        self.before1 = design.before_layer()
        self.conv1 = convolution(inputs, inner, 1)
        self.bn1 = bi_real_norm(design, inner)
        self.before2 = design.before_layer()
        self.conv2 = convolution(inner, inner, 3, stride)
        self.bn2 = bi_real_norm(design, inner)
        self.before3 = design.before_layer()
        self.conv3 = convolution(inner, outputs, 1)
        self.bn3 = bi_real_norm(design, outputs)
        self.downsample = downsample
        self.after = design.after_layer()

    def forward(self, x: Tensor) -> Tensor:
        out = self.after(self.bn1(self.conv1(self.before1(x))))
        out = self.after(self.bn2(self.conv2(self.before2(out))))
        return self.after(self.bn3(self.conv3(self.before3(out))) + self.downsample(x))


def resnet(
    depths: Sequence[int], widths: Sequence[int] = (64, 128, 256, 512), inner: int = 0
) -> Callable[[Design], nn.Module]:
    """A builder of the network with so many blocks a stage and the stages so wide.

    inner: how wide bottlenecks are inside, times `widths`, and four times those outside; 0 for basic blocks.
    Layers are called as torchvision's are.
    """

    def build(design: Design) -> nn.Module:
        large = max(design.image_size) > SMALL
        channels = design.channels(widths[0])
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=convolution(design.in_channels, channels, 7 if large else 3, 2 if large else 1),
            bn1=nn.BatchNorm2d(channels),
            relu=nn.PReLU(channels) if design.block == "real-to-binary" else design.after_layer(),
            maxpool=nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity(),
        )
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            blocks: list[nn.Module] = []
            outputs = design.channels(4 * width if inner else width)
            for block in range(depth):
                stride = 2 if stage > 1 and block == 0 else 1
                shortcut = downsample(channels, outputs, stride, pooled=large and design.binary)
                if inner:
                    shape = channels, design.channels(inner * width), outputs
                    blocks.append(Bottleneck(design, shape, stride, shortcut))
                else:
                    norm, after = partial(bi_real_norm, design), design.after_layer()
                    blocks.append(BasicBlock(design, (channels, outputs), stride, shortcut, norm, after))
                channels = outputs
            layers[f"layer{stage}"] = nn.Sequential(*blocks)
        layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        layers["fc"] = nn.Linear(channels, design.num_classes)
        return nn.Sequential(layers)

    return build


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias, and padded so that only the stride makes the map smaller."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def before(design: Design, channels: int) -> nn.Module:
    """What stands before a convolution of so many channels: sign if activations are binary, after batch norm or not."""
    sign = design.before_layer(channels)
    return nn.Sequential(nn.BatchNorm2d(channels), sign) if design.norm_first else sign


def bi_real_norm(design: Design, channels: int) -> nn.Module:
    """Batch norm; where activations are binary, after a PReLU with a slope for each channel, or as the block has it."""
    if design.norm_first:
        return nn.PReLU(channels)
    norm = nn.BatchNorm2d(channels)
    return nn.Sequential(nn.PReLU(channels), norm) if design.binary and not design.block else norm


def downsample(inputs: int, outputs: int, stride: int, pooled: bool) -> nn.Module:
    """The shortcut round a block: a 1x1 convolution and batch norm where the shape changes, nothing else where not.

    pooled: average pooling has the stride, not the convolution.
    """
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    norm = nn.BatchNorm2d(outputs)
    if pooled and stride > 1:
        pool = nn.AvgPool2d(stride, ceil_mode=True)  # as the 3x3 convolution, which rounds up too
        return nn.Sequential(pool, convolution(inputs, outputs, 1), norm)
    if stride > 1 and inputs < FEW:
        parts = {"pixels": nn.AvgPool2d(1, stride), "0": convolution(inputs, outputs, 1), "1": norm}
        return nn.Sequential(OrderedDict(parts))
    return nn.Sequential(convolution(inputs, outputs, 1, stride), norm)

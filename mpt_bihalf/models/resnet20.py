"""ResNet-20 for small images (He et al. 2016), and with binary activations in IR-Net's shape (Qin et al. 2020)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from .design import Design
from .resnet import BasicBlock, convolution


class PaddedShortcut(nn.Module):
    """Every stride-th pixel, with channels of zeros round those there: [N, C, H, W] -> [N, C + new, H', W'].

    Without parameters: option A of He et al.
    """

    def __init__(self, new: int, stride: int) -> None:
        super().__init__()
        self.padding, self.stride = (new // 2, new - new // 2), stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


def resnet20(design: Design) -> nn.Module:
    """Three stages of three basic blocks, 16, 32 and 64 wide: 0.27 million parameters for ten classes.

    Binary: sign, convolution, batch norm, addition and hardtanh round each convolution; batch norm before the last
    layer.
    """
    after = nn.Hardtanh if design.binary else design.after_layer
    channels = design.channels(16)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=convolution(design.in_channels, channels, 3), bn1=nn.BatchNorm2d(channels), relu=after()
    )
    for stage in (1, 2, 3):
        blocks: list[nn.Module] = []
        outputs = design.channels(8 << stage)
        for block in range(3):
            stride = 2 if stage > 1 and block == 0 else 1
            shortcut = nn.Identity() if stride == 1 else PaddedShortcut(outputs - channels, stride)
            blocks.append(BasicBlock(design, (channels, outputs), stride, shortcut, nn.BatchNorm2d, after()))
            channels = outputs
        layers[f"layer{stage}"] = nn.Sequential(*blocks)
    layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["bn2"] = nn.BatchNorm1d(channels) if design.binary else nn.Identity()
    layers["fc"] = nn.Linear(channels, design.num_classes)
    return nn.Sequential(layers)

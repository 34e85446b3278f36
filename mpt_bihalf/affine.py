"""What stays as it is beside frozen weights: biases, and the scales and shifts of norms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from .activation_modules import ChannelShift, RPReLU
from .binarizable import BINARIZABLE
from .real_valued import is_matrix
from .scale_modules import ScaledOutput

_TORCHS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU)
_NORMS = (*_TORCHS, ChannelShift, RPReLU)


def affine_parameters(model: nn.Module, binarized: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """The biases of these layers, and the scales and shifts that do not belong to another layer.

    These are all parameters of torch's norms and PReLU, the vectors that are a module's own where its class is called a
    norm (GlobalResponseNorm, say), and what is called `gain`.
    """
    binarized = set(binarized)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, _NORMS):
            yield from module.parameters()
        elif module in binarized:
            yield from (own[name] for name in ("bias", "gain") if name in own)
        elif isinstance(module, ScaledOutput) and module.layer in binarized:
            yield from (own[name] for name in ("bias",) if name in own)
        elif not isinstance(module, BINARIZABLE):
            called_norm = "norm" in type(module).__name__.lower()
            yield from (own[name] for name in own if name == "gain" or (called_norm and not is_matrix(own[name])))

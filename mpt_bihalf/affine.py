"""What stays as it is beside frozen weights: biases, and the scales and shifts of norms."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .binarizable import BINARIZABLE
from .real_valued import is_matrix

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU)


def freeze_affine(model: nn.Module, binarized: Iterable[nn.Module]) -> None:
    """Stop training the biases of these layers, and the scales and shifts that do not belong to another layer.

    These are all parameters of torch's norms and PReLU, the vectors that are a module's own where its class is called a
    norm (GlobalResponseNorm, say), and what is called `gain`.
    """
    binarized = set(binarized)
    for module in model.modules():
        if isinstance(module, _NORMS):
            module.requires_grad_(False)
        elif module in binarized:
            _freeze(module, "bias", "gain")
        elif not isinstance(module, BINARIZABLE):
            called_norm = "norm" in type(module).__name__.lower()
            vectors = [name for name, own in module.named_parameters(recurse=False) if not is_matrix(own)]
            _freeze(module, "gain", *vectors * called_norm)


def _freeze(module: nn.Module, *names: str) -> None:
    for name in names:
        tensor = getattr(module, name, None)
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(False)

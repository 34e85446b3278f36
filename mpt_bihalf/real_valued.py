"""Weights that no method is put on, where a reader might not expect it: attention's `in_proj_weight`, embeddings."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from .binarizable import BINARIZABLE
from .parametrization import BinaryWeight
from .scale_modules import output_scales

# Of all parameters; what is less is not worth a line.
LEAST_SHARE = 0.01


class StaysReal(UserWarning):
    """A model has matrices that belong to no convolution or linear layer; the message names them, with their share."""


def is_matrix(tensor: Tensor) -> bool:
    """Whether two dimensions or more are larger than 1."""
    return sum(size > 1 for size in tensor.shape) > 1


def real_matrices(model: nn.Module) -> str:
    """One line about the matrices that belong to no convolution or linear layer; "" where there are none.

    By the names that their modules have for them; those of a name count from 1 % of all parameters on. Scores are no
    parameters in this sense, and scales are to be real-valued. The same before and after a method is put on the model.
    """
    of_layers = {id(p) for module in model.modules() if isinstance(module, BINARIZABLE) for p in module.parameters()}
    of_layers |= {id(scale) for scale in output_scales(model)}
    scores = {id(module.scores) for module in model.modules() if isinstance(module, BinaryWeight)}
    parameters = {name: own for name, own in model.named_parameters() if id(own) not in scores}
    total = sum(own.numel() for own in parameters.values())
    found: dict[str, list[str]] = {}
    for name, own in parameters.items():
        if is_matrix(own) and id(own) not in of_layers:
            found.setdefault(name.rpartition(".")[2], []).append(name)
    counts = {own: sum(parameters[name].numel() for name in names) for own, names in found.items()}
    told = [own for own in found if counts[own] >= LEAST_SHARE * total]
    share = sum(counts[own] for own in told) / max(total, 1)
    line = f"stay real-valued: {', '.join(_named(own, found[own]) for own in told)}, {share:.1%} of the parameters"
    return line.replace("%", " %") if told else ""


def warn_of_real_matrices(model: nn.Module) -> None:
    """Tell whoever called the caller of this."""
    line = real_matrices(model)
    if line:
        warnings.warn(line, StaysReal, stacklevel=3)


def _named(own: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{own} of {len(names)} modules ({names[0].rpartition('.')[0] or 'the model'}, ...)"

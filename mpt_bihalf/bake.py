"""A binarized model as a plain one."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .parametrization import is_binarized, refuse_nan

Model = TypeVar("Model", bound=nn.Module)


def bake_weights(model: Model) -> Model:
    """A plain copy of a binarized model: its weights are alpha * B, and it gives the same outputs to the last bit.

    Nothing of this package is left in the copy; it can be pickled and exported. `model` stays as it is. Raises
    ValueError, naming the layer, for a NaN in latent weights or scores.
    """
    refuse_nan(model)
    baked = deepcopy(model)
    with torch.no_grad():
        used = {id(module): cast(Tensor, module.weight).clone() for module in baked.modules() if is_binarized(module)}
    for module in baked.modules():
        if id(module) in used:
            # deepcopy shares the class that torch made for the parametrized layer, and removal edits the class.
            parametrized = type(module)
            module.__class__ = type(parametrized.__name__, parametrized.__bases__, dict(vars(parametrized)))
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight = nn.Parameter(used[id(module)])
            for name in list(module._parameters):  # the weight first again, as in a layer that was never parametrized
                if name != "weight":
                    module._parameters[name] = module._parameters.pop(name)
    return baked

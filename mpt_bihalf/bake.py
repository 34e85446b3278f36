"""A binarized model as a plain one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .affine import affine_parameters
from .compute import torchs_modules
from .given_masks import has_fixed_mask
from .output_scale import is_on_output, put_scales_behind
from .parametrization import binary_parts, is_binarized, one_pass, refuse_nan
from .ranking import GlobalRanking

Model = TypeVar("Model", bound=nn.Module)


def bake_weights(model: Model) -> Model:
    """A plain copy of a binarized model: its weights are alpha * B, and it gives the same outputs to the last bit.

    Those of a model that computes densely: of one under `set_compute(model, "sparse")` but for rounding.

    A layer whose scale is on its output holds B, and what it gives goes through its `output_scale`, which multiplies by
    alpha and adds the bias.

    Binary weights are frozen in it. What the method froze beside them, biases and norms, is trainable again, and all
    else as it was. Real-valued weights under a fixed mask (`fix_masks`) are those in use, 0 where pruned. Nothing of
    this package is in the copy but what the network itself was made of, `BinaryActivation` say; it can be pickled and
    exported. `model` stays as it is.

    Raises ValueError, naming the layer, for a NaN in latent weights or scores, and for a sharded model.
    """
    baked, scales = plain_copy(model)
    for name in scales:
        weight: Any = baked.get_submodule(name).weight
        weight.data = weight.detach().sign()
    put_scales_behind(baked, scales)
    return baked


def plain_copy(model: Model) -> tuple[Model, dict[str, Tensor]]:
    """As `bake_weights`, but with alpha * B for the weight of each layer; and alpha of those with it on the output.

    alpha is by the layer's name, as the method's scale gives it.
    """
    refuse_nan(model)
    baked = deepcopy(model)
    named = [*binary_parts(baked)]
    parts = [part for _, part, _ in named]
    binarized: list[Any] = [module for module in baked.modules() if is_binarized(module)]
    layers = [*binarized, *(module for module in baked.modules() if has_fixed_mask(module))]
    with torch.no_grad(), one_pass(baked):
        used = {
            id(_latent(layer)): nn.Parameter(layer.weight.clone(), requires_grad=layer not in binarized)
            for layer in layers
        }
        on_output = [(name, part, w) for name, part, w in named if is_on_output(baked.get_submodule(name))]
        scales = {name: part.scaled_binary(latent)[1].abs() for name, part, latent in on_output}
    for layer, weight in [(layer, used[id(_latent(layer))]) for layer in layers]:
        # deepcopy shares the class that torch made for the parametrized layer, and removal edits the class.
        parametrized = type(layer)
        layer.__class__ = type(parametrized.__name__, parametrized.__bases__, dict(vars(parametrized)))
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight = weight
        for name in list(layer._parameters):  # the weight first again, as in a layer that was never parametrized
            if name != "weight":
                layer._parameters[name] = layer._parameters.pop(name)
    _forget_passes(baked)
    torchs_modules(baked)
    if any(part.freezes_affine for part in parts):
        before = {parameter for part in parts for parameter in part.frozen_before}
        for parameter in affine_parameters(baked, binarized):
            parameter.requires_grad_(parameter not in before)
    return baked, scales


def _forget_passes(baked: nn.Module) -> None:
    """Take off the hooks that tell a global ranking of a pass."""
    for module in baked.modules():
        hooks: tuple[dict[int, Any], ...] = module._forward_pre_hooks, module._forward_hooks
        for of_module in hooks:
            for key in [k for k, hook in of_module.items() if isinstance(getattr(hook, "__self__", 0), GlobalRanking)]:
                del of_module[key]
                module._forward_hooks_always_called.pop(key, None)


def _latent(layer: Any) -> Tensor:
    return cast(Tensor, layer.parametrizations.weight.original)

"""Which layers of a model a method is put on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .parametrization import is_binarized

BINARIZABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
SKIP_RULES = ("first", "last", "downsample")


def layers_to_binarize(model: nn.Module, skip: Sequence[str] | str) -> dict[str, Any]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, BINARIZABLE)}
    names = list(found)
    skipped = set()
    for entry in (skip,) if isinstance(skip, str) else skip:
        if entry in found:
            skipped.add(entry)
        elif entry == "none":
            continue
        elif entry == "first":
            skipped.update(names[:1])
        elif entry == "last":
            skipped.update(names[-1:])
        elif entry == "downsample":
            skipped.update(name for name, layer in found.items() if _on_shortcut(name, layer))
        else:
            raise ValueError(
                f"skip: no convolution or linear layer is called {entry!r}; rules: {', '.join(SKIP_RULES)}; "
                f"layers: {', '.join(names)}"
            )
    layers = {name: module for name, module in found.items() if name not in skipped}
    if not layers:
        raise ValueError("no convolution or linear layer is left to binarize")
    for name, layer in layers.items():
        if is_binarized(layer):
            raise ValueError(f"layer {name!r} is binarized already; bake_weights(model) gives a plain copy")
        if parametrize.is_parametrized(layer, "weight") or "weight" not in layer._parameters:
            raise ValueError(f"layer {name!r}: its weight is computed (weight_norm?), not a parameter; name it in skip")
        if layer.weight.is_complex():
            raise ValueError(f"layer {name!r} has complex weights")
        if nn.parameter.is_lazy(layer.weight):
            raise ValueError(f"layer {name!r} has no weight yet: run the model once on an input before binarizing it")
        if layer.weight.numel() == 0:
            raise ValueError(f"layer {name!r} has an empty weight, {tuple(layer.weight.shape)}")
    _refuse_shared_elsewhere(model, layers)
    return layers


def _refuse_shared_elsewhere(model: nn.Module, layers: dict[str, Any]) -> None:
    """Raise ValueError where a weight of these layers is held by something else too; by several of them it may be."""
    owners = defaultdict(list)
    for owner, module in model.named_modules():
        for kind, parameter in module._parameters.items():
            if parameter is not None:
                owners[_place(parameter)].append((owner, kind, parameter))
    for name, layer in layers.items():
        for owner, kind, parameter in owners[_place(layer.weight)]:
            if owner not in layers or kind != "weight" or parameter is not layer.weight:
                other = f"{owner}.{kind}".lstrip(".")
                raise ValueError(
                    f"layer {name!r} shares its weight with {other!r}, which would not follow it: "
                    f"name {name!r} in skip, or give it a weight of its own"
                )


def _place(parameter: nn.Parameter) -> int:
    """Where a parameter lies: what two have alike that are one, or views of one memory."""
    return id(parameter) if parameter.is_meta else parameter.data_ptr() or id(parameter)


def _on_shortcut(name: str, layer: nn.Module) -> bool:
    """Whether a residual network's layer is on a shortcut, by what resnets, regnets and MaxViTs call those."""
    parts = set(name.split("."))
    # A linear layer of that name is attention's.
    return bool({"downsample", "shortcut"} & parts) or ("proj" in parts and not isinstance(layer, nn.Linear))

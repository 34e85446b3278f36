"""Which layers of a model a method is put on."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .parametrization import is_binarized, parametrizations
from .usage import Usage, alone

BINARIZABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# By name: to import the second takes a second.
WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")
SKIP_RULES = ("first", "last", "downsample")


def layers_of(model: nn.Module) -> dict[str, Any]:
    """The convolution and linear layers of a model by name, in the order in which they were made."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BINARIZABLE)}


def layers_to_binarize(model: nn.Module, skip: Sequence[str] | str, use: Usage | None = None) -> dict[str, Any]:
    """The layers that `skip` leaves, by name, in the order in which they were made.

    use: of the model's layers; by it go `first` and `last`. Without it they go by the order in which the layers were
    made, and a warning says which they are. Raises ValueError, in one line, for an entry of `skip` that is no layer and
    no rule, and for a layer whose weight is none to binarize.
    """
    for module in model.modules():
        if type(module).__name__ in WRAPPERS:
            raise ValueError(
                f"binarize the model first, then wrap it: {type(module).__name__} would not know the scores"
            )
    found = layers_of(model)
    skip = (skip,) if isinstance(skip, str) else skip
    names = list(found)
    ends = {"first": names[:1], "last": names[-1:]} if use is None else {"first": use.first, "last": use.last}
    skipped = set()
    for entry in skip:
        if entry in found:
            skipped.add(entry)
        elif entry == "none":
            continue
        elif entry in ends:
            if found and not ends[entry]:
                raise ValueError(f"skip: no layer is seen to be the {entry} that uses this example; name it")
            skipped.update(ends[entry])
        elif entry == "downsample":
            skipped.update(name for name, layer in found.items() if _on_shortcut(name, layer))
        else:
            raise ValueError(
                f"skip: no convolution or linear layer is called {entry!r}; rules: {', '.join(SKIP_RULES)}; "
                f"layers: {', '.join(names)}"
            )
    layers = {name: module for name, module in found.items() if name not in skipped}
    if not layers:
        left_out = f": skip takes {', '.join(map(repr, sorted(skipped)))}" if skipped else ""
        raise ValueError(f"no convolution or linear layer is left to binarize{left_out}")
    for name, layer in layers.items():
        _refuse_unfit(name, layer)
    _refuse_shared_elsewhere(model, layers)
    taken = [f"{ends[entry][0]!r} for {entry!r}" for entry in ends if use is None and entry in skip]
    if taken:
        warnings.warn(
            f"skip: took {' and '.join(taken)}, by the order in which the layers were made; "
            "with example=, an input of the model, it goes by use",
            stacklevel=3,
        )
    return layers


def _refuse_unfit(name: str, layer: Any) -> None:
    """Raise ValueError for a layer whose weight is none to binarize."""
    if is_binarized(layer):
        raise ValueError(f"layer {name!r} is binarized already; bake_weights(model) gives a plain copy")
    if any(hasattr(part, "fixed_mask") for part in parametrizations(layer)):
        raise ValueError(f"layer {name!r} has a fixed mask: binarize it first, then call fix_masks")
    if parametrize.is_parametrized(layer, "weight") or "weight" not in layer._parameters:
        raise ValueError(f"layer {name!r}: its weight is computed (weight_norm?), not a parameter; name it in skip")
    if layer.weight.is_complex():
        raise ValueError(f"layer {name!r} has complex weights")
    if nn.parameter.is_lazy(layer.weight):
        raise ValueError(f"layer {name!r} has no weight yet: run the model once on an input before binarizing it")
    if any(step == 0 and size > 1 for step, size in zip(layer.weight.stride(), layer.weight.shape, strict=True)):
        raise ValueError(f"layer {name!r} has an expanded weight, of which several values lie in one place")
    if layer.weight.numel() == 0:
        raise ValueError(f"layer {name!r} has an empty weight, {tuple(layer.weight.shape)}")


def check_use(layers: Mapping[str, nn.Module], seen: Usage | None = None) -> None:
    """Raise ValueError, naming the layers, where operators would be given something else than binary weights.

    seen: how a run of the model used the weights. A layer that it did not use, or all where there was none, is tried by
    itself, unless its forward pass is torch's own.
    """
    changed = []
    for name, layer in layers.items():
        use, own = seen, name
        if use is None or name not in use.used:
            if as_torch_has_it(layer):
                continue
            try:
                use, own = alone(layer), ""
            except ValueError as fault:
                raise ValueError(
                    f"layer {_told(name, layer)} cannot be tried by itself ({fault}): give example=, an input of the "
                    "model, or name it in skip"
                ) from fault
        if own not in use.used or own in use.changed:
            changed.append(_told(name, layer))
    if changed:
        others = f" (and of {len(changed) - 1} more)" * (len(changed) > 1)
        raise ValueError(
            f"the weight of layer {changed[0]}{others} is changed before it is used and would not be binary; "
            "name such layers in skip"
        )


def _refuse_shared_elsewhere(model: nn.Module, layers: dict[str, Any]) -> None:
    """Raise ValueError where a weight of these layers is held by something else too; by several of them it may be."""
    owners = defaultdict(list)
    for owner, module in model.named_modules():
        for kind, parameter in (*module._parameters.items(), *module._buffers.items()):
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


def _place(parameter: Tensor) -> int:
    """Where a parameter or buffer lies: what two have alike that are one, or views of one memory."""
    return id(parameter) if parameter.is_meta else parameter.data_ptr() or id(parameter)


def _told(name: str, layer: nn.Module) -> str:
    return f"{name!r} ({type(layer).__name__})"


def as_torch_has_it(layer: nn.Module) -> bool:
    """Whether the layer's forward pass is that of torch's class, which gives the weight itself to the operator."""
    base = next(kind for kind in BINARIZABLE if isinstance(layer, kind))
    own = [name for name in ("forward", "_conv_forward") if hasattr(base, name)]
    return all(getattr(getattr(layer, name), "__func__", None) is getattr(base, name) for name in own)


def _on_shortcut(name: str, layer: nn.Module) -> bool:
    """Whether a residual network's layer is on a shortcut, by what resnets, regnets and MaxViTs call those."""
    parts = set(name.split("."))
    # A linear layer of that name is attention's.
    return bool({"downsample", "shortcut"} & parts) or ("proj" in parts and not isinstance(layer, nn.Linear))

"""A trained scale behind each layer of a network that a binary activation feeds."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..binarizable import layers_of
from ..binary_inputs import layers_with_binary_input
from ..scale_modules import OUTPUT_SCALES, ScaledOutput
from ..usage import META, copied, usage

Model = TypeVar("Model", bound=nn.Module)


def scale_outputs(model: Model, output_scale: str, example: Tensor) -> Model:
    """Put a scale behind each convolution and linear layer that a `BinaryActivation` feeds, in place.

    output_scale: of `OUTPUT_SCALES`. example: images [N, C, H, W] for the model, on the meta device say; the scales are
    for this size. Each such layer becomes a `ScaledOutput`. Returns the model; before `binarize_weights`.

    Raises ValueError for an unknown scale, a model that does not take the example, and one without such a layer.
    """
    if output_scale not in OUTPUT_SCALES:
        raise ValueError(f"unknown output_scale {output_scale!r}; known: {', '.join(OUTPUT_SCALES)}")
    layers: dict[str, Any] = layers_of(model)
    fed = layers_with_binary_input(model, layers, usage(model, layers, example))
    if not fed:
        raise ValueError("no binary activation feeds a layer, so there is none to put a scale behind")
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str, layer: nn.Module, inputs: Any, z: Tensor) -> None:
        sizes[name] = tuple(z.shape[2:])

    copy = copied(model, META)
    for name in fed:
        copy.get_submodule(name).register_forward_hook(partial(note, name))
    with torch.no_grad(), META:
        copy(example.to(META))
    for name, layer in layers.items():
        if name in fed:
            scale = OUTPUT_SCALES[output_scale](len(layer.weight), sizes[name]).to(layer.weight)
            model.set_submodule(name, ScaledOutput(layer, scale))
    return model

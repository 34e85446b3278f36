"""Networks by name. A new one is one file here and one line in `MODELS`."""

from __future__ import annotations

import torch
from torch import nn

from ..activation_modules import Activation, find_activation
from ..activations import Estimator
from ..binarizable import BINARIZABLE
from ..dtypes import float32_by_default
from ..initialise import draw_latent
from ..scale_modules import OUTPUT_SCALES
from . import vgg
from .conv import conv_network
from .design import AROUND as AROUND
from .design import BLOCKS, Design, Network
from .design import NORM_FIRST as NORM_FIRST
from .from_torchvision import PREFIX, torchvision_network
from .inception import inception_v3
from .resnet import resnet
from .resnet20 import resnet20
from .scaled import scale_outputs as scale_outputs
from .shufflenet import shufflenet

MODELS: dict[str, Network] = {
    **{f"conv{n}": Network(conv_network(n), skip=(), sparse_from=0.3, blocks=NORM_FIRST) for n in (2, 4, 6, 8)},
    "resnet18": Network(resnet((2, 2, 2, 2)), sparse_from=0.5, blocks=BLOCKS),
    "resnet34": Network(resnet((3, 4, 6, 3)), sparse_from=0.5, blocks=BLOCKS),
    "wide_resnet34": Network(resnet((3, 4, 6, 3), widths=(64, 192, 384, 768))),
    "wide_resnet50": Network(resnet((3, 4, 6, 3), inner=2)),
    "resnet20": Network(resnet20, sparse_from=0.9),
    "vgg_small": Network(vgg.vgg(vgg.SMALL, bias=False, average=False), sparse_from=0.5),
    "vgg16": Network(vgg.vgg(vgg.SIXTEEN, bias=True, average=True)),
    "inception_v3": Network(inception_v3),
    "shufflenet": Network(shufflenet),
}


def find_network(name: str) -> Network:
    """The entry of this name, or that of torchvision:NAME; ValueError with the known names otherwise."""
    if name.startswith(PREFIX):
        return torchvision_network(name.removeprefix(PREFIX))
    if name not in MODELS:
        known = ", ".join([*MODELS, PREFIX + "NAME"])
        raise ValueError(f"unknown model {name!r}; known: {known}, and your own by --plugin")
    return MODELS[name]


def check_block(name: str, block: str, binary: bool) -> None:
    """Raise ValueError, in one line, for a block that this network, with such activations, cannot be built of."""
    if not block:
        return
    if block not in BLOCKS:
        raise ValueError(f"unknown block {block!r}; known: {', '.join(BLOCKS)}; empty is the network's own")
    if block not in find_network(name).blocks:
        able = ", ".join(known for known, network in MODELS.items() if block in network.blocks)
        raise ValueError(f"{name} has no block {block!r}; {able} have")
    if not binary:
        raise ValueError(f"block {block!r} is for binary activations: say which, or leave it out")


def check_scales(name: str, output_scale: str, input_scale: bool, binary: bool) -> None:
    """Raise ValueError, in one line, for scales round binary layers that this network cannot be built with."""
    if output_scale != "none" and output_scale not in OUTPUT_SCALES:
        raise ValueError(f"unknown output_scale {output_scale!r}; known: none, {', '.join(OUTPUT_SCALES)}")
    if not binary and output_scale != "none":
        remedy = "a learned scale of each filter is --scale learned"
        raise ValueError(f"output_scale {output_scale} is for binary activations: say which, or leave it out; {remedy}")
    if not binary and input_scale:
        raise ValueError("input_scale is for binary activations: say which, or leave it out")
    if input_scale and not find_network(name).blocks:
        able = ", ".join(known for known, network in MODELS.items() if network.blocks)
        raise ValueError(f"{name} has no place for input_scale; {able} have")


def check_activation(name: str, block: str, input_scale: bool, activation: Activation | None) -> None:
    """Raise ValueError, in one line, for an activation that does not go with this network or what else is asked for."""
    if activation is None:
        return
    around = [f"sign terms {activation.terms}"] * bool(activation.terms) + ["input_scale"] * input_scale
    around += ["the gate of block real-to-binary"] * (block == "real-to-binary")
    if len(around) > 1:
        raise ValueError(f"{around[0]} and {around[1]} cannot be round the same layers: leave one of them out")
    if (activation.terms or activation.before) and not find_network(name).blocks:
        able = ", ".join(known for known, network in MODELS.items() if network.blocks)
        raise ValueError(f"{name} has no place for activations that are more than a sign; {able} have")


def create_model(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    seed: int | None = None,
    *,
    width: float = 1.0,
    activations: str | Estimator | Activation = "real",
    block: str = "",
    output_scale: str = "none",
    input_scale: bool = False,
) -> nn.Module:
    """A network by its name: a plain module with Kaiming normal weights that maps [N, C, H, W] to logits [N, classes].

    name: one of `MODELS`, or torchvision:NAME for a classifier of torchvision.
    image_size: pixels, of square images or as (height, width).
    seed: of the weights; None draws from torch's global generator, any other leaves that untouched. They are drawn in
        float32, and then brought to torch's default dtype.
    width: what all hidden channel counts are multiplied by, above 0.
    activations: `real`, or for binary ones the estimator of their gradient (`clip`, `approx`, `ede`, `swish`, or your
        own), or an entry of `ACTIVATIONS` (`rsign`, `rbnn`, `ls1`, `ls2`, ...).
    block: of a network with binary activations, `norm-first` (batch norm, sign, layer, PReLU; conv2 to conv8, resnet18
        and resnet34), `real-to-binary` (likewise, with a gate on what the layer gives), `bi-real` (sign, layer, batch
        norm; resnet18 and resnet34) or `reactnet` (likewise, RPReLU behind the addition); empty: the network's own.
    output_scale: `gamma-1` to `gamma-4`: a trained scale behind each layer with binary input (`Gamma`), which is then
        for images of this size but with gamma-1. `none`: none.
    input_scale: multiply what these layers give by the mean magnitude of their inputs before the sign (`InputScaled`);
        conv2 to conv8, resnet18 and resnet34.

    Raises ValueError for an unknown name or a size that does not suit the network.
    """
    network = find_network(name)
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{what} must be at least 1, not {value}")
    if not 0 < width < float("inf"):
        raise ValueError(f"width must be a finite number above 0, not {width}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(size) < 1:
        raise ValueError(f"images of {size[0]}x{size[1]} have no pixels")
    activation = None if activations == "real" else find_activation(activations)
    check_block(name, block, activation is not None)
    check_scales(name, output_scale, input_scale, activation is not None)
    check_activation(name, block, input_scale, activation)
    with torch.random.fork_rng(devices=[], enabled=seed is not None), float32_by_default():
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        model = network.build(Design(num_classes, in_channels, size, width, activation, block, input_scale))
        if output_scale != "none":
            scale_outputs(model, output_scale, torch.empty(1, in_channels, *size, device="meta"))
    if torch.get_default_dtype() != torch.float32:
        model.to(torch.get_default_dtype())
    # Drawn on the host, so that a seed gives the same weights on every device.
    generator = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, BINARIZABLE):
            draw_latent(layer.weight, 1.0, "kaiming_normal", generator)
    return model

"""The file of a ticket: a safetensors container with entropy-coded bits, in which nothing can execute.

`bits/LAYER` holds the mask and the signs of the kept weights (see `coding`), `alpha/LAYER` the scale, `rest/NAME` the
real-valued rest; the header's metadata say the remainder, with a check sum of all. In the form `seed` the bits are the
mask alone: the signs are drawn again from the run's seed, and compared with a check sum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..files import open_file, parse_json, write_whole
from ..models import AROUND, find_network
from ..parametrization import binary_layers
from ..training import Run
from ..training.build import build_network
from .coding import Decoder, bound, encode
from .images import ImageSpec
from .ticket import BinaryLayer, Ticket, with_defaults

# Version 2 says which layers have their scale on the output; a ticket in which none has is of version 1.
FORMAT, VERSIONS = "mpt_bihalf ticket", ("1", "2")
FORMS = ("bits", "seed")
SIZES = ("num_classes", "in_channels", "image_size")
# Reading measures what a file claims before it makes anything of it. All layers together have at most
# MOST_WEIGHTS, above any network of torchvision's; more than SMALL only with a byte of bits for each WEIGHTS_A_BYTE of
# them, as 99.9 % pruned takes one for each 645.
MOST_WEIGHTS, SMALL, WEIGHTS_A_BYTE = 2**30, 2**25, 2**10
# Of a tensor.
DIMENSIONS = 8
# In bytes: above that of 30,000 tensors.
LARGEST_HEADER = 4 * 2**20
# How many bits a layer may have less than its Shannon bound, which the coder never has.
SLACK = 64

Model = TypeVar("Model", bound=nn.Module)


def save_ticket(
    model: nn.Module,
    path: Path | str,
    architecture: dict[str, Any] | None = None,
    note: str = "",
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write a model under a method of this package as a ticket, whole or not at all.

    architecture: the arguments of `create_model` that make the network, as `{"name": "conv4", "num_classes": 10}`;
    without it the ticket is loaded by `load_ticket(path, into=model)`. note: kept in the file.

    mean, std: what training standardised images by, (x - mean) / std for x in [0, 1]; a finite float for each channel,
    std above 0; both or neither. classes: their distinct names, in the order of the network's outputs. Kept in the file
    for whatever scores or runs the network.

    Raises ValueError for a NaN in what was trained, for an architecture that is not the model's, and for mean, std or
    classes that are none or do not fit the architecture.
    """
    ticket = Ticket.of(model, architecture, {"note": note} if note else {})
    spec = ImageSpec.of({"mean": mean, "std": std, "classes": classes}, ticket.architecture)
    images = {"images": spec.known()} if spec.known() else {}
    write_ticket(replace(ticket, about=ticket.about | images), path)


def load_ticket(path: Path | str, into: Model | None = None) -> nn.Module:
    """The plain network of a ticket, in evaluation mode, with the outputs of the trained one to the last bit.

    Of one that computed sparsely but for rounding.

    into: a plain network of the user's own, which is given the ticket's state and returned; without it the network is
    made from its name. Binary weights are frozen (`requires_grad` is False), so that fine-tuning leaves them binary.
    All else is trainable; in a network of the user's own it stays trainable or frozen, as it was.

    Nothing in the file is executed. Raises ValueError, in one line, for a file that is no ticket, truncated, altered or
    of a newer version, and for a network that it does not fit, which then stays as it was.
    """
    ticket = read_ticket(path, into)
    return ticket.network() if into is None else ticket.put_into(into)


def ticket_weights(path: Path | str) -> dict[str, Tensor]:
    """B of each binary layer of a ticket by name, as `binary_weights` of the trained network gives it.

    int8 in the shape of the weight: -1, 0 (pruned), +1. The network is not built, nor need it be known. Raises
    ValueError for a file that is no ticket, as `load_ticket` does.
    """
    return {name: layer.binary for name, layer in read_ticket(path).layers.items()}


def write_ticket(ticket: Ticket, path: Path | str, form: str = "bits") -> None:
    """Write a ticket, whole or not at all.

    form: `bits`, or `seed`, which leaves out the signs. ValueError where these do not follow from the seed of a run.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    header: dict[str, Any] = {
        "form": form,
        "layers": {name: [[*layer.binary.shape], layer.kept, layer.positive] for name, layer in ticket.layers.items()},
        "shared": ticket.shared,
        "architecture": ticket.architecture,
        "channels_last": ticket.channels_last,
        "about": ticket.about,
    }
    on_output = [name for name, layer in ticket.layers.items() if layer.scale_on == "output"]
    if on_output:
        header["scale_on_output"] = on_output
    if form == "seed":
        masks = {name: layer.binary != 0 for name, layer in ticket.layers.items()}
        signs = {name: layer.binary for name, layer in drawn_layers(ticket, masks).items()}
        if any(not torch.equal(signs[name], layer.binary) for name, layer in ticket.layers.items()):
            raise ValueError("the signs do not follow from the seed: take the form 'bits'")
        header["signs_sha256"] = _sum_of_signs(signs)
    tensors = {}
    for name, layer in ticket.layers.items():
        tensors[f"bits/{name}"] = _pack(layer.binary, signs=form == "bits")
        tensors[f"alpha/{name}"] = layer.alpha.contiguous().clone()
    _check_total(ticket.layers, tensors)
    tensors |= {f"rest/{name}": value.contiguous().clone() for name, value in ticket.rest.items()}
    try:
        text = json.dumps(header, separators=(",", ":"))
    except TypeError as fault:
        raise ValueError(f"a ticket holds plain values only: {fault}") from None
    metadata = {"format": FORMAT, "version": VERSIONS[bool(on_output)], "header": text}
    metadata["sha256"] = _digest(metadata, tensors)
    content = safetensors.torch.save(tensors, metadata)
    write_whole(Path(path), lambda file: file.write(content))


def read_ticket(path: Path | str, into: nn.Module | None = None, model: str | None = None) -> Ticket:
    """What a ticket's file holds. Raises ValueError, in one line, as `load_ticket`.

    into: a plain network that it must fit. model: the name of the network that it must be of, one of `create_model`'s.
    Either is looked at before anything is unpacked.
    """
    path = Path(path)
    if model is not None:
        find_network(model)
    metadata, tensors = _open(path)
    try:
        header = parse_json(metadata["header"].encode(), Path("its header"))
        if ("scale_on_output" in header) != (metadata["version"] == VERSIONS[1]):
            raise ValueError("its header is of another version than it says")
        return _ticket(header, tensors, into, model)
    except Exception as fault:  # whatever comes of a header that says something else than a ticket's
        reason = " ".join(str(fault).split())
        if not isinstance(fault, ValueError):
            reason = f"its header is none of a ticket ({type(fault).__name__}: {reason[:200]})"
        raise ValueError(f"{str(path)!r} is a ticket that cannot be used: {reason}") from fault


def tensor_sizes(path: Path | str) -> dict[str, int]:
    """Bytes of each tensor in a ticket's file, by the name that it has there."""
    return {name: value.numel() * value.element_size() for name, value in _open(Path(path))[1].items()}


def _open(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors, as they were written."""
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is no file")
    with open_file(path) as start:
        if int.from_bytes(start.read(8), "little") > LARGEST_HEADER:
            raise ValueError(f"{str(path)!r} is no ticket: its header is to be more than {LARGEST_HEADER:,} bytes")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{str(path)!r} is no ticket of mpt_bihalf")
            version = metadata.get("version", "")[:9]
            if version not in VERSIONS:
                raise ValueError(
                    f"{str(path)!r} is a ticket of version {version!r}, and this mpt_bihalf reads "
                    f"{' and '.join(VERSIONS)}: update it"
                )
            names = file.keys()
            if any(len(file.get_slice(name).get_shape()) > DIMENSIONS for name in names):
                raise ValueError(f"{str(path)!r} is no ticket: it has a tensor of more than {DIMENSIONS} dimensions")
            # Copies: what get_tensor gives may be the file itself, and change or end with it.
            tensors = {name: file.get_tensor(name).clone() for name in names}
        digest = _digest(metadata, tensors)
    except (SafetensorError, OSError, RuntimeError, TypeError, AttributeError, OverflowError) as fault:
        if isinstance(fault, PermissionError):
            raise
        raise ValueError(f"{str(path)!r} is no ticket, or a damaged one: {' '.join(str(fault).split())}") from fault
    if metadata.get("sha256") != digest:
        raise ValueError(f"{str(path)!r} is damaged or was altered: its check sum is another")
    return metadata, tensors


def _ticket(header: dict[str, Any], tensors: dict[str, Tensor], into: nn.Module | None, model: str | None) -> Ticket:
    form, shared, about = header["form"], header["shared"], header["about"]
    if form not in FORMS or not isinstance(about, dict) or not isinstance(header["channels_last"], bool):
        raise ValueError("its header is none of a ticket")
    rest = {name.removeprefix("rest/"): value for name, value in tensors.items() if name.startswith("rest/")}
    kinds = {f"{kind}/{name}" for name in header["layers"] for kind in ("bits", "alpha")}
    if kinds | {f"rest/{name}" for name in rest} != tensors.keys():
        raise ValueError("its parts are not those that it names")
    outlines: dict[str, BinaryLayer] = {}
    counts: dict[str, list[int]] = {}
    on_output = set(header.get("scale_on_output", []))
    if not on_output <= header["layers"].keys():
        raise ValueError("it names a layer that it does not have")
    for name, told in header["layers"].items():
        scale_on = "output" if name in on_output else "weight"
        outlines[name], *counts[name] = _outline(name, told, tensors, form, scale_on)
    _check_total(outlines, tensors)
    architecture = header["architecture"]
    if architecture is not None:
        architecture = with_defaults(architecture)
    ticket = Ticket(outlines, rest, shared, architecture, header["channels_last"], about)
    # Before anything of these sizes is made.
    if model is not None and (architecture is None or architecture["name"] != model):
        told = "a network of its maker's own" if architecture is None else repr(architecture["name"])
        raise ValueError(f"it is for {told}, not for {model!r}")
    if into is not None:
        ticket.check_fits(into)
    if architecture is None:
        ticket.shapes()
    else:
        ticket.outline()
    packed = {name: tensors[f"bits/{name}"].numpy().tobytes() for name in outlines}
    if form == "seed":
        masks = {name: _unpack(packed[name], layer.binary.shape, counts[name][0]) for name, layer in outlines.items()}
        signs = {name: layer.binary for name, layer in drawn_layers(ticket, masks).items()}
        if _sum_of_signs(signs) != header["signs_sha256"]:
            raise ValueError(
                "the weights drawn from its seed are others here: make it with --form bits where it comes from"
            )
    else:
        signs = {name: _unpack(packed[name], layer.binary.shape, *counts[name]) for name, layer in outlines.items()}
    return replace(ticket, layers={name: replace(layer, binary=signs[name]) for name, layer in outlines.items()})


def _outline(
    name: str, told: Any, tensors: dict[str, Tensor], form: str, scale_on: str
) -> tuple[BinaryLayer, int, int]:
    """The layer without its bits, and how many it keeps and has at +1. ValueError for one that cannot be."""
    shape, kept, positive = told
    # Each is looked at before any two are multiplied.
    numbers = (*shape, kept, positive)
    if len(shape) > DIMENSIONS or not all(type(n) is int and 0 <= n <= MOST_WEIGHTS for n in numbers):
        raise ValueError(f"layer {name!r} has an impossible size")
    if not positive <= kept <= prod(shape):
        raise ValueError(f"layer {name!r} keeps more than it has")
    alpha, bits = tensors[f"alpha/{name}"], tensors[f"bits/{name}"]
    if not alpha.is_floating_point() or torch.broadcast_shapes(alpha.shape, shape) != torch.Size(shape):
        raise ValueError(f"the scale of layer {name!r} does not fit it")
    if scale_on == "output" and alpha.numel() != 1 and [*alpha.shape] != [shape[0], *[1] * (len(shape) - 1)]:
        raise ValueError(f"the scale of layer {name!r} is on its output, and not one for each filter")
    least = bound(prod(shape), kept) + (bound(kept, positive) if form == "bits" else 0)
    if bits.dtype != torch.uint8 or bits.dim() != 1 or 8 * len(bits) < least - SLACK:
        raise ValueError(f"layer {name!r} has fewer bits than so many weights take")
    return BinaryLayer(torch.empty(shape, dtype=torch.int8, device="meta"), alpha, scale_on), kept, positive


def _check_total(layers: dict[str, BinaryLayer], tensors: dict[str, Tensor]) -> None:
    """ValueError for more weights than a file with these bits may have."""
    weights = sum(layer.binary.numel() for layer in layers.values())
    packed = sum(len(tensors[f"bits/{name}"]) for name in layers)
    most = min(MOST_WEIGHTS, max(SMALL, WEIGHTS_A_BYTE * packed))
    if weights > most:
        raise ValueError(f"its layers have {weights:,} weights, and in {packed:,} bytes of bits are at most {most:,}")


def _pack(binary: Tensor, signs: bool) -> Tensor:
    values = binary.numpy().reshape(-1)
    mask = values != 0
    packed = encode([mask, values[mask] > 0] if signs else [mask])
    return torch.from_numpy(np.frombuffer(packed, dtype=np.uint8).copy())


def _unpack(packed: bytes, shape: torch.Size, kept: int, positive: int | None = None) -> Tensor:
    """B, int8; of bits without signs the mask, bool."""
    decoder = Decoder(packed)
    mask = decoder.decode(prod(shape), kept)
    signs = None if positive is None else decoder.decode(kept, positive)
    decoder.end()
    if signs is None:
        return torch.from_numpy(mask).view(shape)
    binary, values = mask.astype(np.int8), signs.view(np.int8)
    values *= 2  # in place: a layer may take a good part of the memory
    values -= 1
    binary[mask] = values
    return torch.from_numpy(binary).view(shape)


def drawn_network(ticket: Ticket, seed: int | None = None) -> nn.Module:
    """The network of the run that a ticket came from at its start, under its method, by its own or another seed.

    Raises ValueError for a ticket of no run.
    """
    architecture, told = ticket.architecture, ticket.told("run")
    if architecture is None or not told:
        raise ValueError("only the ticket of a run has a seed to draw weights from")
    run = Run.from_dict(told)
    if architecture != network_of(run, *(architecture[size] for size in SIZES)):
        raise ValueError("its network is not that of its run")
    if seed is not None:
        run = replace(run, seed=seed)
    return build_network(run, *(architecture[size] for size in SIZES))


def network_of(run: Run, num_classes: int, in_channels: int, image_size: int) -> dict[str, Any]:
    """The arguments of `create_model` that make a run's network."""
    sizes = dict(zip(SIZES, (num_classes, in_channels, image_size), strict=True))
    known = {"name": run.model, **sizes, "width": run.width, "activations": run.activations}
    return with_defaults(known | {name: getattr(run, name) for name in AROUND})


@torch.no_grad()
def drawn_layers(ticket: Ticket, masks: dict[str, Tensor], seed: int | None = None) -> dict[str, BinaryLayer]:
    """The layers that the run's method draws from its own or another seed, under these masks."""
    parts = {name: (part, weight) for name, part, weight in binary_layers(drawn_network(ticket, seed))}
    if parts.keys() != masks.keys():
        raise ValueError("its layers are not those of its run")
    drawn = {name: part.scaled_binary(weight, masks[name]) for name, (part, weight) in parts.items()}
    return {
        name: BinaryLayer(binary.to(torch.int8), alpha, parts[name][0].scale_on)
        for name, (binary, alpha) in drawn.items()
    }


def _sum_of_signs(signs: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(signs):
        digest.update(signs[name].contiguous().numpy().data)
    return digest.hexdigest()


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """Of all that the file says, but this."""
    digest = hashlib.sha256(json.dumps({**metadata, "sha256": ""}, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), [*value.shape]]).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""What a ticket is: the binary layers of a network, its real-valued rest, and what is known about it."""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..bake import plain_copy
from ..binarizable import BINARIZABLE
from ..dtypes import float32_by_default
from ..models import AROUND, create_model
from ..output_scale import BEHIND, per_channel, put_scales_behind, take_scales_off
from ..parametrization import binary_layers, refuse_sharded
from ..weights import forget
from .images import ImageSpec

Model = TypeVar("Model", bound=nn.Module)
# Of a ticket's network. The size is that of a run, which images are resized to.
MOST_CLASSES, MOST_CHANNELS, LARGEST_SIDE = 2**20, 2**20, 1024


@dataclass(frozen=True)
class BinaryLayer:
    """The weight alpha * B of a layer.

    binary: B, int8 in the weight's shape: -1, 0 (pruned), +1. alpha: of the weight's dtype, broadcasts over it.
    scale_on: `weight`, or `output` where the layer's weight is B and a module behind it multiplies by alpha.
    """

    binary: Tensor
    alpha: Tensor
    scale_on: str = "weight"

    @property
    def weight(self) -> Tensor:
        """What the plain layer has for a weight: alpha * B, the very bits that training used, or B."""
        binary = self.binary.to(self.alpha.dtype)
        return binary if self.scale_on == "output" else self.alpha * binary

    @property
    def kept(self) -> int:
        """How many weights are not pruned."""
        return int(self.binary.count_nonzero())

    @property
    def positive(self) -> int:
        """How many weights are +1."""
        return int((self.binary > 0).sum())


@dataclass(frozen=True)
class Ticket:
    """A binarized network as data, on the host.

    layers: the binary ones by name, in the network's order. rest: all else of its state by name: skipped layers, norms.
    shared: further names in its state of a tensor that stands there under an earlier one, and that earlier name.
    architecture: the arguments of `create_model` that make the network; None for one of the user's own.
    channels_last: whether its weights lie so in memory, on which the rounding of its outputs may depend.
    about: plain values that a reader may want: the run, its result, what the images are like, a note.
    """

    layers: dict[str, BinaryLayer]
    rest: dict[str, Tensor]
    shared: dict[str, str] = field(default_factory=dict)
    architecture: dict[str, Any] | None = None
    channels_last: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, architecture: dict[str, Any] | None = None, about: dict[str, Any] | None = None
    ) -> Ticket:
        """The ticket of a binarized model as it stands; of a plain one all is rest.

        Raises ValueError for a NaN in latent weights or scores, a sharded model, a state that is not of tensors alone,
        and where the architecture is not the model's.
        """
        refuse_sharded(model)
        layers = {}
        plain, on_output = plain_copy(model)
        forget(model)
        with torch.no_grad():
            for name, part, weight in binary_layers(model):
                binary, alpha = part.scaled_binary(weight)
                binary = binary.cpu().to(torch.int8).contiguous()
                layers[name] = BinaryLayer(binary, alpha.detach().cpu(), "output" if name in on_output else "weight")
        take_scales_off(plain, [name for name, _ in plain.named_modules()])  # of layers baked before
        state = _state(plain)
        last = any(
            value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
            for value in state.values()
        )
        shared = _shared(state)
        elsewhere = {weight_of(name) for name in layers} | shared.keys()
        rest = {name: value.detach().cpu() for name, value in state.items() if name not in elsewhere}
        if architecture is not None:
            architecture = with_defaults(architecture)
        ticket = cls(layers, rest, shared, architecture, last, about or {})
        if architecture is not None:
            ticket.outline()
        return ticket

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the plain network, as `bake_weights` would leave it, in tensors of its own."""
        state = self._state_before_scales()
        for name, alpha in self._scales().items():
            bias = state.pop(f"{name}.bias", None)
            state |= {} if bias is None else {f"{name}.{BEHIND}.bias": bias}
            state[f"{name}.{BEHIND}.alpha"] = per_channel(alpha, state[weight_of(name)]).clone()
        return state

    def _scales(self) -> dict[str, Tensor]:
        """alpha of the layers that have it on their output, by name, further names of their weights too."""
        names = {weight_of(name): name for name in self.layers}
        further = {name: earlier for name, earlier in self.shared.items() if name.endswith(".weight")}
        names |= {name: names[earlier] for name, earlier in further.items() if earlier in names}
        first = {weight.removesuffix(".weight"): self.layers[name] for weight, name in names.items()}
        return {name: layer.alpha for name, layer in first.items() if layer.scale_on == "output"}

    def _state_before_scales(self) -> dict[str, Tensor]:
        weights = {weight_of(name): layer.weight for name, layer in self.layers.items()}
        state = weights | {name: value.clone() for name, value in self.rest.items()}
        return state | {name: state[earlier] for name, earlier in self.shared.items()}

    def check_fits(self, model: nn.Module) -> None:
        """Raise ValueError unless the model is plain and whole, and its state has these names, shapes and dtypes."""
        refuse_sharded(model)
        if any(True for _ in binary_layers(model)):
            raise ValueError("the network is binarized already: a ticket goes into a plain one")
        own, shapes = _state(model), self.shapes()
        for name in [*own, *shapes]:
            if name not in shapes:
                raise ValueError(f"the ticket is for another network: it has no {name!r}")
            if name not in own:
                raise ValueError(f"the ticket is for another network, one with {name!r}")
            if (own[name].shape, own[name].dtype) != shapes[name]:
                shape, dtype = shapes[name]
                raise ValueError(
                    f"the ticket is for another network: {name!r} is {list(shape)} of {dtype} in it, "
                    f"not {list(own[name].shape)} of {own[name].dtype}"
                )
        for name in self._scales():
            if not isinstance(model.get_submodule(name), BINARIZABLE):
                raise ValueError(f"the ticket is for another network: in this one {name!r} is no layer")

    def shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of each part of the plain network's state."""
        binary = {weight_of(name): (layer.binary.shape, layer.alpha.dtype) for name, layer in self.layers.items()}
        shapes = binary | {name: (value.shape, value.dtype) for name, value in self.rest.items()}
        return shapes | {name: shapes[earlier] for name, earlier in self.shared.items()}

    def put_into(self, model: Model) -> Model:
        """Give a plain network this state, in place, and return it in evaluation mode, its binary weights frozen.

        Raises ValueError for a network that it does not fit, and then leaves it as it was.
        """
        self.check_fits(model)
        state = self._state_before_scales()
        for name, earlier in _shared(_state(model)).items():
            if not torch.equal(state[name], state[earlier]):
                raise ValueError(
                    f"the ticket is for another network: in this one {earlier!r} and {name!r} are one tensor, and in "
                    "the ticket they differ"
                )
        model.load_state_dict(_versioned(state, model))
        return self._as_it_was(model).eval()

    def _as_it_was(self, model: Model) -> Model:
        """The model with its weights as they lay in memory, those frozen that training would make real-valued, and
        scales behind the layers that had them on their outputs.
        """
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=layout)
        for name in self.layers:
            cast(Tensor, model.get_submodule(name).weight).requires_grad_(False)
        put_scales_behind(model, self._scales())
        return model

    def told(self, part: str) -> dict[str, Any]:
        """What `about` has of this part, `run`, `result` or `images`; empty where that is nothing."""
        value = self.about.get(part)
        return value if isinstance(value, dict) else {}

    @property
    def image_spec(self) -> ImageSpec:
        """Mean and std by channel and the classes' names: None where `about` has none, all None where one cannot be."""
        try:
            return ImageSpec.of(self.told("images"), self.architecture)
        except ValueError:
            return ImageSpec()

    @property
    def images(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that its network is for; ValueError where that is not known."""
        if self.architecture is None:
            raise ValueError("the ticket is for a network of your own, of which it does not know the image size")
        size = self.architecture["image_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.architecture["in_channels"]), height, width

    def outline(self) -> nn.Module:
        """The network on the meta device, without values. ValueError where it is not known, or not of these shapes."""
        if self.architecture is None:
            raise ValueError("the ticket is for a network of your own: load_ticket(path, into=your_network)")
        with torch.device("meta"), float32_by_default():
            model = create_model(**self.architecture)
        self.check_fits(model)
        return model

    def network(self) -> nn.Module:
        """The plain network, in evaluation mode, its binary weights frozen.

        Raises ValueError where the ticket does not know its architecture.
        """
        model = self.outline()
        model.load_state_dict(_versioned(self._state_before_scales(), model), assign=True)
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):  # some that is no part of a state
            with float32_by_default():
                return self.put_into(create_model(**cast(Any, self.architecture), seed=0))
        return self._as_it_was(model).eval()


def weight_of(layer: str) -> str:
    """The name of a layer's weight in the state of its network; of a network that is one layer the layer is ''."""
    return f"{layer}.weight" if layer else "weight"


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a plain model's state by name, the very ones. ValueError for a part of it that is no tensor."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"a ticket holds tensors only, and {name!r} of the network's state is none")
    return state


def _versioned(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state with the versions of the model's modules, which some of torchvision's read."""
    found = OrderedDict(state)
    cast(Any, found)._metadata = cast(Any, model.state_dict())._metadata
    return found


def _shared(state: dict[str, Tensor]) -> dict[str, str]:
    """The names under which a tensor stands in the state once more, and the first name of each."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(value), name) for name, value in state.items()}
    return {name: earlier for name, earlier in names.items() if name != earlier}


def with_defaults(architecture: dict[str, Any]) -> dict[str, Any]:
    """All arguments of `create_model` but the seed, and the block where it is the network's own.

    ValueError for one that it does not have, and for sizes that no ticket has, before a network is made of them.
    """
    try:
        bound = signature(create_model).bind(**architecture)
    except TypeError as fault:
        raise ValueError(f"architecture must be the arguments of create_model: {fault}") from None
    bound.apply_defaults()
    told = {name: value for name, value in bound.arguments.items() if name != "seed"}
    for name, own in AROUND.items():
        if told[name] == own:
            del told[name]  # as in tickets of a time before there were any
    sides = told["image_size"] if isinstance(told["image_size"], list | tuple) else [told["image_size"]]
    for name, most, sizes in (
        ("num_classes", MOST_CLASSES, [told["num_classes"]]),
        ("in_channels", MOST_CHANNELS, [told["in_channels"]]),
        ("image_size", LARGEST_SIDE, sides),
    ):
        if len(sizes) > 2 or not all(type(size) is int and 1 <= size <= most for size in sizes):
            raise ValueError(f"{name} must lie in 1 to {most:,} in a ticket, not {reprlib.repr(told[name])}")
    return told

"""How a network uses the weights of its layers, seen in a run of a copy of it on one example input.

Where torch computes, below its modules and functions, each call is looked at (`TorchDispatchMode`). So it does not
matter who uses a weight: the layer's own `forward`, its parent's, or a function such as attention's, which never calls
`out_proj`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from .activations import BinaryActivation
from .devices import random_state_kept

META = torch.device("meta")
# What applies a weight to what it is given, by the names that torch's own calls have in the end.
OPERATORS = frozenset(
    ("convolution", "linear", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "_trilinear")
    + ("embedding", "_embedding_bag", "_embedding_bag_forward_only")
)
# What gives the same values in other memory, or in another dtype, where two values stay two values.
COPIES = frozenset(("clone", "_to_copy"))
# What gives signs, and what gives signs, or means of some, where it is given signs; views are in the same memory.
SIGNS = frozenset(("sign", "sgn"))
SEVERAL = ("cat", "stack")
KEEP_SIGNS = COPIES | frozenset(
    ("max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d")
    + (*SEVERAL, "repeat", "index_select", "channel_shuffle", "native_channel_shuffle")
    + ("pixel_shuffle", "pixel_unshuffle", "flip", "roll")
    + ("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "mean")
)


class Usage(NamedTuple):
    """How one run used the layers' weights; layers by name, in the order of use.

    first: those that the input comes to before any other. last: those after which no other comes.
    used: those whose weight any call was given, as it is or not.
    changed: of these, those whose operators were given something else than the weight, or that had none.
    binary_inputs: those that were called, each time with signs, and whose weight nothing else used.
    """

    first: list[str]
    last: list[str]
    used: list[str]
    changed: list[str]
    binary_inputs: list[str]


def usage(model: nn.Module, layers: Mapping[str, nn.Module], example: Any) -> Usage:
    """How `model` uses the weights of these layers of its on an example, in evaluation mode.

    example: an input of the model, a tuple of positional arguments, or a dictionary of keyword arguments. A tensor may
    be on the meta device.

    A copy of the model is run, on the meta device (no values, no memory), and where that cannot be, on the example's
    own; the model, its buffers, its hooks and torch's random states stay as they are. Raises ValueError, in one line,
    where the model does not take the example.
    """
    arguments = example if isinstance(example, tuple | dict) else (example,)
    without_values = any(tensor.is_meta for tensor in _tensors(arguments))
    for device in (META,) if without_values else (META, None):
        try:
            return _run(model, layers, arguments, device)
        except Exception as error:
            fault = error
    where = "example, on the meta device" if without_values else "example"
    reason = f"{type(fault).__name__}: {str(fault).strip().partition(chr(10))[0]}"
    raise ValueError(f"{where}: the model does not take it: {reason}") from fault


def alone(layer: nn.Module) -> Usage:
    """How a convolution or linear layer by itself, named "", uses its weight on a dummy input.

    Raises ValueError as `usage` does.
    """
    weight = cast(Tensor, layer.weight)
    inputs, *kernel = weight.shape[1:]
    reach = [2 * size * step for size, step in zip(kernel, cast(Any, layer).dilation if kernel else (), strict=True)]
    shape = (2, inputs * getattr(layer, "groups", 1), *reach)
    return usage(layer, {"": layer}, weight.new_zeros(shape))


@dataclass
class _Trace:
    """What the values in one block of memory come from.

    layers: those upstream. from_input: whether the input is. weights: layers of whose weights, and of no input, the
    values are made, other than by an operator. whole: how many values a weight has here that is kept as it is; 0: none.
    signs: whether all values are -1, 0 or +1, as of a binary activation, or means of such.
    """

    memory: torch.UntypedStorage  # held, lest other values come to stand at its address
    layers: set[str] = field(default_factory=set)
    from_input: bool = False
    weights: set[str] = field(default_factory=set)
    whole: int = 0
    signs: bool = False


class _Watch(TorchDispatchMode):
    def __init__(self, layers: Mapping[str, nn.Module], arguments: Any) -> None:
        super().__init__()
        self._traces: dict[int, _Trace] = {}
        self._before: dict[str, set[str]] = {}  # what stood before each layer when the input first came to it
        self._followed: set[str] = set()
        self._used: dict[str, None] = {}
        self._whole: set[str] = set()
        self._changed: set[str] = set()
        self._called: list[str] = []
        self._binary_inputs: dict[str, bool] = {}
        for tensor in _tensors(arguments):
            self._trace(tensor).from_input = True
        for name, layer in layers.items():
            computed = parametrize.is_parametrized(layer, "weight")
            held: Any = cast(Any, layer).parametrizations.weight.parameters() if computed else [layer.weight]
            for tensor in held:  # the weight, or what it is computed from
                trace = self._trace(tensor)
                trace.weights.add(name)
                trace.whole = tensor.numel()
            layer.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            layer.register_forward_hook(self._leave)

    def _enter(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        self._called.append(name)
        self._judge(name, all(self._trace(tensor).signs for tensor in _tensors((args, kwargs))))

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._called.pop()

    def _judge(self, name: str, binary: bool) -> None:
        self._binary_inputs[name] = self._binary_inputs.get(name, True) and binary

    def signs_of(self, activation: nn.Module, args: Any, output: Tensor) -> None:
        """A hook of binary activations: what they give are signs."""
        self._trace(output).signs = True

    def usage(self) -> Usage:
        in_use = [name for name in self._used if name in self._whole | self._changed]
        return Usage(
            first=[name for name in in_use if not self._before.get(name, {name})],
            last=[name for name in in_use if name not in self._followed],
            used=list(self._used),
            changed=[name for name in self._used if name not in self._whole or name in self._changed],
            binary_inputs=[name for name, binary in self._binary_inputs.items() if binary],
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [(tensor, self._trace(tensor)) for tensor in _tensors((args, kwargs))]
        name = func._schema.name.rpartition("::")[2]
        if name.endswith("_like") or name.startswith("new_"):
            return result  # in whose values there is nothing of what was given
        layers: set[str] = set().union(*(trace.layers for _, trace in given))
        weights: set[str] = set().union(*(trace.weights for _, trace in given))
        from_input = any(trace.from_input for _, trace in given)
        self._used.update(dict.fromkeys(sorted(weights)))
        for _, trace in given:
            for used in trace.weights if trace.weights.isdisjoint(self._called[-1:]) else ():
                self._judge(used, False)
        of = given if name in SEVERAL else given[:1]
        signs = name in SIGNS or (name in KEEP_SIGNS and all(trace.signs for _, trace in of))
        if name in OPERATORS and weights:
            self._apply(given, weights, layers, from_input)
            layers, weights = layers | weights, set()
        copied = name in COPIES and _whole(*given[0])
        for tensor in _tensors(result):
            new = tensor.untyped_storage()._cdata not in self._traces
            trace = self._trace(tensor)
            trace.signs = signs if new else trace.signs and not func._schema.is_mutable
            trace.layers |= layers
            trace.from_input |= from_input
            trace.weights |= set() if from_input else weights
            if func._schema.is_mutable:
                trace.whole = 0
            elif copied:
                trace.whole = tensor.numel()
        return result

    def _apply(self, given: list[tuple[Tensor, _Trace]], used: set[str], layers: set[str], from_input: bool) -> None:
        for tensor, trace in given:
            (self._whole if _whole(tensor, trace) else self._changed).update(trace.weights)
        for name in used if from_input else ():
            self._before.setdefault(name, layers - used)
        self._followed = (self._followed | layers) - used

    def _trace(self, tensor: Tensor) -> _Trace:
        memory = tensor.untyped_storage()
        return self._traces.setdefault(memory._cdata, _Trace(memory))


def _whole(tensor: Tensor, trace: _Trace) -> bool:
    """Whether this view of a weight's memory has all of it, laid out in whatever way or repeated."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return 0 < count == trace.whole


def _run(model: nn.Module, layers: Mapping[str, nn.Module], arguments: Any, device: Any) -> Usage:
    """device: where to; None where everything is."""
    there = next((tensor.device for tensor in _tensors((arguments, list(model.parameters())))), META)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        random_state_kept(device or there),
        ExitStack() as after,
    ):
        # Torch's attention layers are to make a call for each weight, not one for all.
        after.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        copy = copied(model, device)
        arguments = deepcopy(arguments, {id(t): _copy(t, device) for t in _tensors(arguments)})
        watch = _Watch({name: copy.get_submodule(name) for name in layers}, arguments)
        for module in copy.modules():
            if isinstance(module, BinaryActivation):
                module.register_forward_hook(watch.signs_of)
        with device or nullcontext(), watch:
            copy(**arguments) if isinstance(arguments, dict) else copy(*arguments)
    return watch.usage()


def copied(model: nn.Module, device: torch.device | None) -> nn.Module:
    """A copy in evaluation mode, without hooks, its tensors on this device; None: where they are."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        _memorise(module, device, memo)
    return deepcopy(model, memo).eval()


def _memorise(module: nn.Module, device: torch.device | None, memo: dict[int, Any]) -> None:
    """Let deepcopy take tensors to the device, and leave out hooks, which are the user's and may tell of each pass."""
    for held in (vars(module), module._parameters, module._buffers):
        for tensor in held.values():
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _copy(tensor, device)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        memo[id(getattr(module, hooks))] = OrderedDict()


def _copy(tensor: Tensor, device: torch.device | None) -> Tensor:
    copy = tensor.detach().to(device or tensor.device, copy=True)
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


def _tensors(value: Any) -> Iterator[Tensor]:
    """Each tensor in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))

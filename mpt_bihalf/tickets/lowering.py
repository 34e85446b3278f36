"""A ticket's network as a program (`program`), by a trace of it (torch.fx) on the meta device.

So its weights are never numbers: mask and signs go from the ticket into the program. Scales, batch norms and what is
behind a layer become its steps; between whole numbers and a sign they become a whole threshold a channel, found by
what torch gives for each (`fold.threshold`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from inspect import signature
from math import inf, isfinite, prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from ..activation_modules import ChannelShift, RPReLU, SampleStandard, SignTerms
from ..activations import BinaryActivation
from ..batch_norm import SyncBatchNorm
from ..dtypes import float32_by_default
from ..scale_modules import Gamma, Gated, InputScaled
from .fold import threshold
from .moved import Moved, taken, whole_value
from .program import (
    ADD,
    AFFINE,
    CHANNELS,
    CLAMP,
    CONVOLUTION,
    FLATTEN,
    FUNCTION,
    HALVE,
    LINEAR,
    MOST_NUMBERS,
    MOST_OF_KERNEL,
    MOST_SIDE,
    MOST_SIGNS,
    MOST_TAPS,
    MULTIPLY,
    POINTWISE,
    POOLING,
    PRELU,
    SIGN,
    THRESHOLD,
    Operation,
    Shape,
    Step,
    Value,
    Word,
    bits,
    numbers,
    packed,
)
from .ticket import Ticket, weight_of


class CannotRun(ValueError):
    """The network has something that the program cannot do; the text names it."""


def program_of(ticket: Ticket, into: nn.Module | None, images: Shape) -> tuple[bytes, int]:
    """The program of a ticket's network, or of `into`, for images [C, H, W], and how many numbers it gives for each.

    Raises ValueError in one line, `CannotRun` where it names what of the network cannot be done so.
    """
    model = ticket.outline() if into is None else _outline_of(into, ticket)
    for name, module in model.named_modules():
        if isinstance(module, ChannelShift | Gamma | Gated | InputScaled | RPReLU | SampleStandard | SignTerms):
            raise CannotRun(f"a compiled ticket cannot do this: {type(module).__name__}, at {name!r}")
    return _Lowering(model.eval(), ticket).of_images(images)


def _outline_of(model: nn.Module, ticket: Ticket) -> nn.Module:
    """A copy on the meta device, which takes no memory for tensors."""
    ticket.check_fits(model)
    tensors = (*model.parameters(), *model.buffers())
    memo: dict[int, Any] = {id(tensor): _without_values(tensor) for tensor in tensors}
    return deepcopy(model, memo)


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BinaryActivation | Gamma | SyncBatchNorm) or super().is_leaf_module(
            m, module_qualified_name
        )


class _Lowering(fx.Interpreter):
    """Runs the traced network on `Value`s, which adds to `operations` what gives them."""

    def __init__(self, model: nn.Module, ticket: Ticket) -> None:
        try:
            graph = _Tracer().trace(model)
        except Exception as fault:  # whatever the network's own code raises when it is given a stand-in for values
            reason = str(fault).strip().partition("\n")[0]
            raise CannotRun(f"torch.fx cannot trace {type(model).__name__}: {reason}") from fault
        traced = fx.GraphModule(model, graph)
        traced.graph.eliminate_dead_code()
        super().__init__(traced, garbage_collect_values=False)
        self.extra_traceback = False
        self.ticket = ticket
        self.layers = {weight_of(name): layer for name, layer in ticket.layers.items()}
        self.values: list[Value] = []
        self.starts = [0]  # where the numbers of each value begin among all; of one that is halved later, too
        self.operations: list[Operation] = []
        self.owner: dict[int, fx.Node] = {}  # of a value's number: the only node that has it
        self.node: Any = None

    def of_images(self, shape: Shape) -> tuple[bytes, int]:
        image = self._value(shape)
        with torch.no_grad(), float32_by_default():
            result = self._whole(self.run(image))
        if not isinstance(result, Value) or result.map:
            raise CannotRun("a network that does not give one number for each class")
        result = self._floats(result)
        if not self.operations:
            raise CannotRun("a network without a layer")
        for operation in self.operations:
            _make_threshold(operation)
        return packed(self.values, self.operations, image.number, result.number), result.shape[0]

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        if n.op in ("placeholder", "get_attr", "output"):
            return super().run_node(n)
        given, keywords = self.fetch_args_kwargs_from_env(n)
        if not any(isinstance(one, Value | Moved) for one in tree_leaves((given, keywords))):
            return super().run_node(n)
        module = n.op == "call_module"
        operation = self.fetch_attr(str(n.target)) if module else n.target
        handler = HANDLERS.get(type(operation) if module else operation) or HANDLERS.get(_qualified(operation))
        if handler is None:
            name = type(operation).__name__ if module else getattr(operation, "__name__", str(operation))
            raise self._cannot(name)
        try:
            result = handler(self, operation, *given, **keywords)
        except (TypeError, IndexError, KeyError, AttributeError) as fault:  # called in a way that is not known here
            raise self._cannot(f"{_qualified(operation)} with these arguments ({fault})") from fault
        if isinstance(result, Value):
            if given and result is given[0] and not self._alone(result, 0):
                self.owner.pop(result.number, None)  # others have it too
            else:
                self.owner[result.number] = n
        in_place = getattr(operation, "inplace", False) if module else operation in IN_PLACE
        if not module:
            in_place = in_place or _told(operation, given, keywords).get("inplace")
        if in_place and result is not given[0]:
            self._written(given[0], result)
        return result

    def _written(self, old: Any, new: Any) -> None:
        """Let those who are yet to read what an operation in place has changed have the new value."""
        changed = self._numbers(old)
        for node, value in list(self.env.items()):
            done = all(user in self.env or user is self.node for user in node.users)
            if node is self.node or done or not changed & self._numbers(value):
                continue
            if not (isinstance(old, Value) and isinstance(value, Value) and isinstance(new, Value)):
                raise self._cannot("an operation in place on values that are read by other ways too")
            self.env[node] = replace(new, flat=value.flat)
            self.owner.pop(new.number, None)

    def _numbers(self, value: Any) -> set[int]:
        """The values of which a node has numbers."""
        found: set[int] = set()
        for one in tree_leaves(value):
            if isinstance(one, Value):
                found.add(one.number)
            if isinstance(one, Moved):
                places = one.places.unique().numpy()
                found |= set(np.searchsorted(self.starts, places[places >= 0], side="right") - 1)
        return found

    def _cannot(self, what: str) -> CannotRun:
        place = str(self.node.target) if self.node.op == "call_module" else self.node.name
        return CannotRun(f"a compiled ticket cannot do this: {what}, at {place!r}")

    # ---- values

    def _value(self, shape: Sequence[int], sign: bool = False, flat: bool = False) -> Value:
        if prod(shape) > MOST_NUMBERS:
            raise CannotRun(
                f"a compiled ticket cannot do this: a value of {' x '.join(map(str, shape))} numbers an image"
            )
        self.values.append(Value(len(self.values), cast(Shape, tuple(shape)), sign, flat))
        self.starts.append(self.starts[-1] + prod(shape))
        return self.values[-1]

    def _add(self, kind: int, into: Value, shape: Sequence[int], words: Sequence[Word] = (), **more: Any) -> Value:
        whole = more.pop("whole", None)
        out = self._value(shape, **more)
        self.operations.append(Operation(kind, into.number, out.number, [*words], whole=whole))
        return out

    def _whole(self, value: Any) -> Any:
        """Of what was moved the value that it is now."""
        if not isinstance(value, Moved):
            return value
        sizes = value.places.shape
        if len(sizes) not in (2, 4) or sizes[0] != 1:
            raise self._cannot(f"a value of {len(sizes)} dimensions")
        flat = len(sizes) == 2
        shape: Any = (*sizes[1:], 1, 1) if flat else tuple(sizes[1:])
        places, shapes = value.places.numpy().reshape(shape), [each.shape for each in self.values]
        number = whole_value(places, self.starts, shapes)
        if number is not None and shape == shapes[number]:
            return replace(self.values[number], flat=flat)
        if number is not None and shape[1:] == (1, 1):
            return self._add(FLATTEN, self.values[number], shape, sign=self.values[number].sign, flat=flat)
        found = taken(places, self.starts, shapes)
        if found is None and shape[1:] == (1, 1):  # perhaps of maps' channels that were moved and then laid in a row
            height, width = self._value_at(int(places.flat[0])).shape[1:]
            if height * width > 1 and shape[0] % (height * width) == 0:
                inner = self._whole(Moved(value.places.view(1, -1, height, width)))
                return self._add(FLATTEN, inner, shape, sign=inner.sign, flat=flat)
        if found is None:
            raise self._cannot("pixels moved among each other")
        sources = {number: self.values[number] for number in map(int, found.values) if number >= 0}
        if len({source.sign for source in sources.values()}) > 1 or (found.values < 0).any():
            sources = {number: self._floats(source) for number, source in sources.items()}
        if next(iter(sources.values())).shape[1:] != shape[1:]:
            windows = [np.stack([each, each + 1], axis=1).astype(np.int32) for each in (found.rows, found.columns)]
            words: list[Word] = [1, 0, *windows, *(np.ones(size, dtype=np.float32) for size in shape[1:]), 1, 1]
            for number, source in sources.items():
                sources[number] = self._add(POOLING, source, (source.shape[0], *shape[1:]), words, sign=source.sign)
        values = [sources[n].number if n >= 0 else -1 for n in map(int, found.values)]
        pairs = np.stack([values, found.channels], axis=1)
        first = next(iter(sources.values()))
        if np.array_equal(pairs, [[first.number, channel] for channel in range(first.shape[0])]):
            return replace(first, flat=flat)
        return self._add(CHANNELS, first, shape, [pairs.astype(np.int32)], sign=first.sign, flat=flat)

    def _value_at(self, place: int) -> Value:
        return self.values[int(np.searchsorted(self.starts, max(place, 0), side="right")) - 1]

    def _places(self, value: Any) -> Any:
        if isinstance(value, Moved):
            return value.places
        if not isinstance(value, Value):
            return value
        start = self.starts[value.number]
        return torch.arange(start, start + prod(value.shape)).view(value.sizes)

    def moved(self, operation: Any, *given: Any, **keywords: Any) -> Any:
        """What moves values does so with their places."""
        given, keywords = tree_map(self._places, (given, keywords))
        call = getattr(torch.Tensor, operation) if isinstance(operation, str) else operation
        try:
            found = call(*given, **keywords)
        except (RuntimeError, IndexError, TypeError, ValueError) as fault:
            raise self._cannot(str(fault).partition("\n")[0]) from fault
        return tree_map(lambda one: Moved(one) if isinstance(one, Tensor) else one, found)

    def pad(self, operation: Any, given: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
        """Zeros beside what is there: the place of a zero is -1."""
        if mode != "constant" or value:
            raise self._cannot(f"padding by {value if mode == 'constant' else mode}")
        return Moved(F.pad(self._places(given), pad, value=-1))

    def _floats(self, value: Value) -> Value:
        return self._add(POINTWISE, value, value.shape, flat=value.flat) if value.sign else value

    def _step(self, given: Any, step: Step, argument: int = 0, sign: bool = False) -> Value:
        """The value after one more step: of the operation that gives it, if nobody else has it."""
        value = self._floats(self._whole(given))
        at = self._made_at(value)
        late = step.joins and self._made_at(self.values[step.operand]) >= at
        if (
            value is not given
            or not self._alone(value, argument)
            or late
            or at < 0
            or not self.operations[at].takes(step)
        ):
            value = self._add(POINTWISE, value, value.shape, flat=value.flat)
            at = len(self.operations) - 1
        self.operations[at].then(step)
        if sign:
            value = self.values[value.number] = replace(self.values[value.number], sign=True, flat=value.flat)
        return value

    def _alone(self, value: Value, argument: int) -> bool:
        """Whether nobody but this node, by this argument, has the value."""
        node = self.node.args[argument] if argument < len(self.node.args) else None
        return isinstance(node, fx.Node) and self.owner.get(value.number) is node and len(node.users) == 1

    def _made_at(self, value: Value) -> int:
        """The index of the operation that gives the value; -1 of the images."""
        return next((i for i, one in enumerate(self.operations) if one.out == value.number), -1)

    def _tensor(self, place: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Of the real-valued rest of the network's state."""
        name = f"{self.node.target}.{place}"
        found = self.ticket.rest[self.ticket.shared.get(name, name)]
        if found.dtype != dtype:
            raise self._cannot(f"{name} of {found.dtype}")
        return found

    # ---- what modules and functions do

    def layer(self, module: Any, given: Any) -> Value:
        """A convolution or a linear layer."""
        value, linear = self._whole(given), isinstance(module, nn.Linear)
        if linear != value.flat:
            raise self._cannot(f"a {type(module).__name__} of values [N, C{'' if value.flat else ', H, W'}]")
        if not linear and module.padding_mode != "zeros":
            raise self._cannot(f"padding by {module.padding_mode}")
        weight, alpha = self._weight()
        if value.shape[0] != weight.shape[1] * (1 if linear else module.groups):
            raise self._cannot(f"{value.shape[0]} inputs of a {type(module).__name__} that takes another number")
        shape = (len(weight), 1, 1) if linear else self._shape(module, len(weight), value)
        sizes = [0] * 9
        if not linear and value.map:
            kernel = [*weight.shape[2:]]
            sizes = [*kernel, *module.stride, *_padding(module), *module.dilation, module.groups]
            if max(sizes[:-1]) > MOST_SIDE or prod(kernel) > MOST_OF_KERNEL:
                raise self._cannot(f"a kernel of {kernel}, stride {module.stride} and padding {module.padding}")
        elif not linear and shape[1:] != (1, 1):
            raise self._cannot("a convolution of one pixel that gives several")
        elif not linear:
            weight = _of_one_pixel(weight, module)
        most = torch.tensor([np.count_nonzero(row) for row in weight.numpy()])
        whole = value.sign and alpha is not None and sizes[0] * sizes[1] <= MOST_TAPS and int(most.max()) <= MOST_SIGNS
        if value.sign and not whole:
            value = self._floats(value)
        words: list[Word] = [*sizes, int(alpha is None), numbers(weight) if alpha is None else bits(weight)]
        kind = CONVOLUTION if value.map else LINEAR
        out = self._add(kind, value, shape, words, flat=linear, whole=most if whole else None)
        if alpha is not None or module.bias is not None:
            scale = torch.ones(len(weight)) if alpha is None else alpha
            shift = torch.zeros(len(weight)) if module.bias is None else self._tensor("bias")
            self.operations[-1].then(Step(AFFINE, scale.double(), shift.double(), exact=lambda z: z * scale + shift))
        return out

    def _weight(self) -> tuple[Tensor, Tensor | None]:
        """B, int8, and alpha [F] of a binary layer; the weight of another one, and None."""
        name = f"{self.node.target}.weight"
        binary = self.layers.get(self.ticket.shared.get(name, name))
        if binary is None:
            return self._tensor("weight"), None
        if binary.alpha.dtype != torch.float32:
            raise self._cannot(f"{name} of {binary.alpha.dtype}")
        filters = len(binary.binary)
        if binary.alpha.numel() not in (1, filters) or binary.alpha.shape[1:].numel() > 1:
            return binary.weight, None
        return binary.binary, binary.alpha.reshape(-1).expand(filters)

    def _shape(self, module: Any, channels: int, value: Value) -> Shape:
        """Of what a convolution or a pooling gives for the value."""
        height, width = (_outputs(module, axis, value.shape[1 + axis]) for axis in (0, 1))
        if min(height, width) < 1:
            raise self._cannot(f"a map of {value.shape[1]}x{value.shape[2]} that is too small")
        return channels, height, width

    def norm(self, module: Any, given: Any) -> Value:
        if module.running_mean is None:
            raise self._cannot("a batch norm without statistics of its own")
        if module.num_features != self._whole(given).shape[0]:
            raise self._cannot(f"a batch norm of {module.num_features} channels, given others")
        mean, variance = self._tensor("running_mean"), self._tensor("running_var")
        weight, bias = (self._tensor("weight"), self._tensor("bias")) if module.affine else (None, None)
        scale = (1.0 if weight is None else weight.double()) / (variance.double() + module.eps).sqrt()
        shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
        rest: Any = weight, bias, False, 0.0, module.eps
        exact = lambda z: F.batch_norm(z[None], mean, variance, *rest)[0]  # noqa: E731
        return self._step(given, Step(AFFINE, scale, shift, exact=exact))

    def clamp(self, operation: Any, given: Any, *arguments: Any, **keywords: Any) -> Value:
        low, high = 0.0, inf
        if isinstance(operation, nn.Hardtanh):  # ReLU6 is one
            low, high = operation.min_val, operation.max_val
        elif operation is F.relu6:
            high = 6.0
        elif operation is F.hardtanh:
            told = _told(operation, (given, *arguments), keywords)
            low, high = told["min_val"], told["max_val"]
        return self._step(given, Step(CLAMP, low=low, high=high, exact=lambda z: z.clamp(low, high)))

    def prelu(self, module: Any, given: Any) -> Value:
        channels = self._whole(given).shape[0]
        if isinstance(module, nn.LeakyReLU):
            slopes = torch.full((channels,), module.negative_slope)
        else:
            slopes = self._tensor("weight")
            if len(slopes) not in (1, channels):
                raise self._cannot(f"a PReLU of {len(slopes)} channels, given {channels}")
            slopes = slopes.expand(channels)
        return self._step(given, Step(PRELU, slopes, exact=lambda z: torch.where(z < 0, z * slopes, z)))

    def function(self, operation: Any, given: Any, *_: Any, **keywords: Any) -> Value:
        if getattr(operation, "approximate", keywords.get("approximate", "none")) != "none":
            raise self._cannot("GELU by tanh")
        name = type(operation) if isinstance(operation, nn.Module) else operation
        number = next(i for i, kinds in enumerate(FUNCTIONS) if name in kinds)
        return self._step(given, Step(FUNCTION, operand=number))

    def sign(self, operation: Any, given: Any) -> Value:
        value, bound = self._whole(given), operation.threshold
        if value.sign and -1 < bound <= 1:
            return value
        if bound:  # x - t >= 0 where x >= t, with rounding too
            given = self.arithmetic(operator.sub, given, bound)
        return self._step(given, Step(SIGN), sign=True)

    def same(self, operation: Any, given: Any, *arguments: Any, **keywords: Any) -> Any:
        if not isinstance(operation, nn.Module) and _told(operation, (given, *arguments), keywords).get("training"):
            raise self._cannot("dropout in evaluation mode")
        return given

    def pool(self, operation: Any, given: Any, *_: Any, **keywords: Any) -> Value:
        """Any pooling: windows of rows and of columns."""
        value = self._whole(given)
        if value.flat:
            raise self._cannot("pooling without rows and columns")
        if not isinstance(operation, nn.Module):
            kind = POOL_MODULES[operation]
            names = list(POOL_ARGUMENTS[kind])
            told = dict(zip(names, _, strict=False)) | keywords
            operation = kind(**{name: one for name, one in told.items() if name in names and one != []})
        maximum = isinstance(operation, nn.MaxPool2d | nn.AdaptiveMaxPool2d)
        if getattr(operation, "return_indices", False) or getattr(operation, "divisor_override", None):
            raise self._cannot(f"{type(operation).__name__} of this kind")
        shape = self._shape(operation, value.shape[0], value)
        both = [_windows(operation, axis, value.shape[1 + axis], shape[1 + axis]) for axis in (0, 1)]
        if any(stop <= begin for windows, _, _ in both for begin, stop in windows):
            raise self._cannot("pooling of windows outside of the map")
        steps = [each[2] for each in both]
        if steps == [1, 1]:
            return value
        alone = given is value and self._alone(value, 0)
        made_by = next((one for one in self.operations if one.out == value.number), None)
        if alone and maximum and steps == [2, 2] and made_by is not None and made_by.halves():
            made_by.halve()
            self.values[value.number] = replace(self.values[value.number], shape=shape)
            return self.values[value.number]
        if value.sign and not maximum:
            value = self._floats(value)
        words: list[Word] = [int(maximum), int(all(steps))]
        words += [np.array(windows, dtype=np.int32).reshape(-1) for windows, _, _ in both]
        words += [np.array(divisors, dtype=np.float32) for _, divisors, _ in both]
        return self._add(POOLING, value, shape, [*words, *(step or 1 for step in steps)], sign=value.sign)

    def mean(self, operation: Any, given: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
        value = self._whole(given)
        if value.flat or sorted(d % 4 for d in np.atleast_1d(dim if dim is not None else [])) != [2, 3]:
            raise self._cannot("a mean over other than rows and columns")
        pooled = self.pool(nn.AdaptiveAvgPool2d(1), given)
        return pooled if keepdim else replace(pooled, flat=True)

    def arithmetic(self, operation: Any, a: Any, b: Any, **keywords: Any) -> Value:
        """A sum or a product of two values, or of a value and a number."""
        if keywords.pop("inplace", None) or keywords:
            raise self._cannot("a sum with a factor")
        kind = ADD if operation in ADDITIONS else MULTIPLY if operation in PRODUCTS else None
        a, b = self._whole(a), self._whole(b)
        if isinstance(a, Value) and isinstance(b, Value) and kind is not None:
            turned = self._made_at(a) < self._made_at(b) if a.shape == b.shape else a.map < b.map
            first, second, argument = (b, a, 1) if turned else (a, b, 0)
            second = self._floats(second)
            if first.shape[0] != second.shape[0] or (second.map and first.shape != second.shape):
                raise self._cannot("a sum or product of values of other shapes")
            if first.number == second.number:
                first = self._add(POINTWISE, first, first.shape, flat=first.flat)
            return self._step(first, Step(kind, operand=second.number), argument)
        number, value = (b, a) if isinstance(a, Value) else (a, b)
        if not isinstance(number, int | float) or not isinstance(value, Value):
            raise self._cannot("arithmetic with a parameter")
        scale, shift = {ADD: (1.0, number), MULTIPLY: (number, 0.0), None: (1.0, 0.0)}[kind]
        if operation in (operator.sub, operator.isub, torch.sub, "sub"):
            scale, shift = (1.0, -number) if value is a else (-1.0, number)
        elif operation in (operator.truediv, operator.itruediv, torch.div, "div") and value is a:
            scale = 1 / number if number else inf
        elif kind is None:
            raise self._cannot("arithmetic of this kind")
        if not isfinite(scale) or not isfinite(shift):
            raise self._cannot(f"arithmetic with {number}")
        many = torch.ones(value.shape[0], dtype=torch.float64)
        step = Step(AFFINE, many * scale, many * shift, exact=lambda z: z * scale + shift)
        return self._step(value, step, 0 if value is a else 1)

    def ask(self, operation: Any, value: Any, *asked: Any) -> Any:
        """Sizes."""
        sizes = value.places.shape if isinstance(value, Moved) else value.sizes
        if operation is getattr and asked[0] in ("shape", "ndim"):
            return sizes if asked[0] == "shape" else len(sizes)
        if operation in ("size", "dim"):
            return len(sizes) if operation == "dim" else sizes[asked[0]] if asked else sizes
        raise self._cannot(f"a tensor's {asked[0]!r}")

    def item(self, operation: Any, given: Any, index: Any) -> Any:
        if isinstance(given, list | tuple):
            return given[index]
        return self.moved(operation, given, index)


def _told(function: Any, given: Sequence[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those left out too; of functions that are not Python's the keywords."""
    try:
        bound = signature(function).bind(*given, **keywords)
    except (TypeError, ValueError):
        return keywords
    bound.apply_defaults()
    return bound.arguments


def _qualified(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"


def _of_one_pixel(weight: Tensor, module: Any) -> Tensor:
    """[F, C]: of a convolution the taps that a map of one pixel has, its groups side by side."""
    filters, inputs, *size = weight.shape
    taps = [padding // dilation for padding, dilation in zip(_padding(module), module.dilation, strict=True)]
    there = all(p % d == 0 and t < k for p, d, t, k in zip(_padding(module), module.dilation, taps, size, strict=True))
    tap = weight[:, :, taps[0], taps[1]] if there else torch.zeros_like(weight[:, :, 0, 0])
    all_inputs = tap.new_zeros(filters, inputs * module.groups)
    for group, rows in enumerate(tap.chunk(module.groups)):
        part = len(rows) * group
        all_inputs[part : part + len(rows), inputs * group : inputs * (group + 1)] = rows
    return all_inputs


def _padding(module: Any) -> list[int]:
    """Above and to the left."""
    if module.padding == "same":
        return [dilation * (size - 1) // 2 for size, dilation in zip(module.kernel_size, module.dilation, strict=True)]
    return [0, 0] if module.padding == "valid" else [*module.padding]


def _outputs(module: Any, axis: int, size: int) -> int:
    """How many rows, or columns, a convolution or a pooling gives of so many."""
    if isinstance(module, ADAPTIVE):
        return _of_axis(module.output_size, axis) or size
    kernel, stride, dilation = (
        _of_axis(one, axis) for one in (module.kernel_size, module.stride, getattr(module, "dilation", 1))
    )
    if module.padding == "same":
        return size
    padding = 0 if module.padding == "valid" else _of_axis(module.padding, axis)
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not getattr(module, "ceil_mode", False):
        return room // stride + 1
    count: int = -(-room // stride) + 1
    return count - ((count - 1) * stride >= size + padding)  # the last window begins inside


def _of_axis(one: Any, axis: int) -> Any:
    return one[axis] if isinstance(one, tuple | list) else one


def _windows(pooling: Any, axis: int, size: int, count: int) -> tuple[list[tuple[int, int]], list[int], int]:
    """Begin and end of each window along an axis, what a mean divides by, and their length if they lie side by side."""
    if isinstance(pooling, ADAPTIVE):
        windows = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        divisors = [stop - begin for begin, stop in windows]
    else:
        kernel, stride, padding, dilation = (
            _of_axis(one, axis)
            for one in (pooling.kernel_size, pooling.stride, pooling.padding, getattr(pooling, "dilation", 1))
        )
        if dilation != 1:
            raise CannotRun("pooling with dilation")
        begins = [i * stride - padding for i in range(count)]
        windows = [(max(0, begin), min(size, begin + kernel)) for begin in begins]
        divisors = [stop - begin for begin, stop in windows]
        if getattr(pooling, "count_include_pad", False):
            divisors = [min(begin + kernel, size + padding) - begin for begin in begins]
    length = windows[0][1] - windows[0][0]
    beside = all(window == (i * length, (i + 1) * length) for i, window in enumerate(windows))
    return windows, divisors, length if beside and divisors == [length] * count else 0


def _make_threshold(operation: Operation) -> None:
    """Of steps behind whole numbers that end in a sign, one threshold: that of what torch gives for each number."""
    steps, most = operation.steps, operation.whole
    if most is None or not steps or steps[-1].kind != SIGN:
        return
    halved = [i for i, step in enumerate(steps) if step.kind == HALVE]
    rest = [step for step in steps[:-1] if step.kind != HALVE]
    before = steps[: halved[0]] if halved else []
    if any(step.kind != AFFINE or bool((cast(Tensor, step.a) < 0).any()) for step in before):
        return  # a maximum is not of what falls
    if any(step.exact is None or (step.kind == PRELU and bool((cast(Tensor, step.a) < 0).any())) for step in rest):
        return

    def value(z: Tensor) -> Tensor:
        for step in rest:
            z = cast(Any, step.exact)(z)
        return z

    direction, shift = threshold(most.float(), value)
    above = torch.where(direction > 0, -shift - 1, shift)
    above = torch.where(direction == 0, torch.where(shift > 0, -MOST_SIGNS - 1, MOST_SIGNS), above)
    found = Step(THRESHOLD, above.to(torch.int32), (direction < 0).to(torch.int32))
    operation.steps = [*([steps[halved[0]]] if halved else []), found]


ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
OTHERS = (operator.sub, operator.isub, torch.sub, "sub", operator.truediv, operator.itruediv, torch.div, "div")
IN_PLACE = (operator.iadd, operator.imul, operator.isub, operator.itruediv, "add_", "mul_", "relu_", torch.relu_)
POOL_MODULES: dict[Any, Any] = {
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}
# In the order in which torch's functions take them, which is not that of its modules.
POOL_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.AdaptiveMaxPool2d: ("output_size", "return_indices"),
}
# In the order of inference.cpp.
FUNCTIONS: tuple[tuple[Any, ...], ...] = (
    (nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid"),
    (nn.SiLU, F.silu),
    (nn.Hardsigmoid, F.hardsigmoid),
    (nn.Hardswish, F.hardswish),
    (nn.Tanh, torch.tanh, F.tanh, "tanh"),
    (nn.GELU, F.gelu),
)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, F.dropout)
CLAMPS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, F.relu, F.relu6, F.hardtanh, torch.relu, torch.relu_, "relu", "relu_")
MOVING: tuple[Any, ...] = (
    *(nn.Flatten, nn.ChannelShuffle, torch.flatten, torch.reshape, torch.permute, torch.transpose),
    *(torch.cat, torch.concat, torch.chunk, torch.split, torch.squeeze, torch.unsqueeze, F.channel_shuffle),
    *("flatten", "view", "reshape", "permute", "transpose", "contiguous", "chunk", "split", "squeeze", "unsqueeze"),
)
HANDLERS: dict[Any, Any] = {
    **dict.fromkeys((nn.Conv2d, nn.Linear), _Lowering.layer),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm), _Lowering.norm),
    **dict.fromkeys(CLAMPS, _Lowering.clamp),
    **dict.fromkeys((nn.PReLU, nn.LeakyReLU), _Lowering.prelu),
    **dict.fromkeys([one for kinds in FUNCTIONS for one in kinds], _Lowering.function),
    BinaryActivation: _Lowering.sign,
    **dict.fromkeys((*NOTHING, "torchvision.ops.stochastic_depth.stochastic_depth"), _Lowering.same),
    **dict.fromkeys((*POOL_MODULES, *POOL_MODULES.values()), _Lowering.pool),
    **dict.fromkeys((torch.mean, "mean"), _Lowering.mean),
    **dict.fromkeys((*ADDITIONS, *PRODUCTS, *OTHERS), _Lowering.arithmetic),
    **dict.fromkeys((getattr, "size", "dim"), _Lowering.ask),
    operator.getitem: _Lowering.item,
    F.pad: _Lowering.pad,
    **dict.fromkeys(MOVING, _Lowering.moved),
}

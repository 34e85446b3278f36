"""A smaller network with the same outputs: batch norms folded into what is before or behind, dead filters removed.

A batch norm goes into the layer or the scale before it. Where a sign follows it, and the layer before gives whole
numbers (`output_scale`), scale and batch norm become a threshold of whole numbers, which changes no output.

A filter is dead where all its weights are zero: what it gives is a constant. It is unused where every weight that reads
it is zero. Either goes where one layer follows another through operations on each channel by itself; where a map
branches, is added to another or put beside one, and round convolutions in groups, all channels stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..activation_modules import SignTerms
from ..activations import BinaryActivation
from ..batch_norm import SyncBatchNorm
from ..binarizable import BINARIZABLE
from ..binary_inputs import fed_by_signs
from ..output_scale import bias_of, is_output_scale, output_scale, per_channel, remove_scale, scale_behind
from ..scale_modules import Gamma

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, SyncBatchNorm)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)  # in evaluation
ELEMENTWISE = (BinaryActivation, nn.ReLU, nn.Hardtanh, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.GELU, F.relu)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
POOLINGS = (
    *MAXIMA,
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, F.adaptive_avg_pool2d, *AVERAGES),
)
FLATTENINGS = (nn.Flatten, torch.flatten)


class Removed(NamedTuple):
    """What `fold` took away: batch norms folded, filters that were dead or unused; and what parameters that leaves."""

    norms: int
    dead: int
    unused: int
    parameters_before: int
    parameters_after: int


@torch.no_grad()
def fold(model: nn.Module, example: Tensor) -> tuple[nn.Module, Removed]:
    """A smaller plain network that gives the outputs of `model` in evaluation mode; `model` stays as it is.

    example: images [N, C, H, W], of any N, that `model` takes.

    Outputs are equal but for rounding: to within 1e-5 of the largest in float32, 1e-12 in float64, unless the network
    itself makes more of it, and then is as far from its own outputs in another precision. With binary activations a
    sign may fall the other way where its input is at rounding distance from 0; a batch norm that a sign follows
    anywhere is therefore folded into a threshold or not at all. A filter has no more distinct weight values than
    before: it is scaled as a whole. Of a layer at least one filter stays.

    Raises ValueError, in one line, for a model with parametrized weights (`bake_weights` gives a plain one), one that
    torch.fx cannot trace, and an example that it does not take.
    """
    network = _traced(model, example)
    before = _parameters(network)
    norms = _fold_thresholds(network) + _fold_norms(network)
    chains, dead, unused = _chains(network), 0, 0
    # Until none is left, as one that goes may leave others behind.
    while any(gone := [sum(counts) for counts in zip(*(chain.trim() for chain in chains), strict=True)]):
        dead, unused = dead + gone[0], unused + gone[1]
    network.recompile()
    network.delete_all_unused_submodules()
    return network, Removed(norms, dead, unused, before, _parameters(network))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, (BinaryActivation, Gamma, SyncBatchNorm)) or scale_behind(m) is not None
        return whole or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Notes the shape that each node gives, as torch's ShapeProp, which prints a traceback where that is an error."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = value.shape if isinstance(value, Tensor) else torch.Size()
        return value


def _traced(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """A copy of the model in evaluation mode, its nodes with their shapes, without what does nothing then."""
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError(
            "only a plain network can be folded, not one with parametrized weights: bake_weights gives one"
        )
    for place, module in model.named_modules():
        if isinstance(module, SignTerms):
            raise ValueError(f"a network with SignTerms, here at {place!r}, cannot be folded: leave fold out")
    tracer, name = _Tracer(), type(model).__name__
    try:
        graph = tracer.trace(deepcopy(model).eval())
    except Exception as fault:  # whatever the network's own code raises when it is given a stand-in for values
        raise ValueError(f"torch.fx cannot trace {name}, so it cannot be folded: {_first_line(fault)}") from fault
    network = fx.GraphModule(tracer.root, graph, name)
    _part_scales(network)
    try:
        _Shapes(network).run(example)
    except (RuntimeError, ValueError, TypeError, AssertionError) as fault:
        raise ValueError(f"{name} does not take an example of {tuple(example.shape)}: {_first_line(fault)}") from fault
    for node in network.graph.nodes:
        if _is(network, node, NOTHING):
            _skip(node)
    return network


def _part_scales(network: fx.GraphModule) -> None:
    """Make a node of its own of each scale behind a layer."""
    scales = {module: remove_scale(module) for module in list(network.modules()) if scale_behind(module) is not None}
    for node in list(network.graph.nodes):
        layer = _operation(network, node)
        if node.op == "call_module" and layer in scales:
            place, scale = f"{node.target}_scale", scales[layer]
            network.add_submodule(place, output_scale(scale.alpha, bias_of(scale), layer.weight, hook=False))
            with network.graph.inserting_after(node):
                node.replace_all_uses_with(scaled := network.graph.call_module(place, ()))
            scaled.args = (node,)


def _first_line(fault: Exception) -> str:
    return str(fault).strip().partition("\n")[0]


def _skip(node: fx.Node) -> None:
    """Take the node out; who used it uses what it was given."""
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _operation(network: fx.GraphModule, node: fx.Node) -> Any:
    """The module or the function that the node calls."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else node.target


def _is(network: fx.GraphModule, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
    """Whether the node calls one of these functions or a module of one of these very classes."""
    operation = _operation(network, node)
    return (type(operation) if node.op == "call_module" else operation) in kinds


class _Layers:
    """The convolutions and linear layers of a network that may be changed: no other node uses their tensors."""

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        self.uses: Counter[int] = Counter()
        for node in network.graph.nodes:
            if node.op == "call_module":
                module = _operation(network, node)
                self.uses.update(id(tensor) for tensor in (*module.parameters(), *module.buffers()))
            elif node.op == "get_attr":
                self.uses[id(attrgetter(str(node.target))(network))] += 1

    def at(self, node: fx.Node) -> Any:
        """The layer that the node calls, if it is one whose filters are dimension 1 of what it gives; else None."""
        if not _is(self.network, node, BINARIZABLE) or not self.alone(node):
            return None
        layer = _operation(self.network, node)
        return layer if len(node.meta["shape"]) == layer.weight.dim() else None

    def scale_at(self, node: fx.Node) -> Any:
        """The scale behind a layer that the node calls, if it is one of dimension 1 of what it gives; else None."""
        scale = _operation(self.network, node)
        if node.op != "call_module" or not is_output_scale(scale) or not self.alone(node):
            return None
        return scale if len(node.meta["shape"]) == scale.alpha.dim() + 1 else None

    def alone(self, node: fx.Node) -> bool:
        module = _operation(self.network, node)
        return all(self.uses[id(tensor)] == 1 for tensor in (*module.parameters(), *module.buffers()))


def _fold_norms(network: fx.GraphModule) -> int:
    """Fold each batch norm that directly follows a layer and that no sign follows anywhere; how many."""
    layers, nodes, folded = _Layers(network), list(network.graph.nodes), 0
    last_sign = max((i for i, node in enumerate(nodes) if _is(network, node, (BinaryActivation,))), default=-1)
    for node in nodes[last_sign + 1 :]:
        if not _is(network, node, NORMS) or not layers.alone(node):
            continue
        source, norm = node.all_input_nodes[0], _operation(network, node)
        layer, scale = layers.at(source), layers.scale_at(source)
        if len(source.users) > 1 or norm.running_mean is None or (layer is None and scale is None):
            continue
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        if layer is not None:
            # Of linear layers too: fuse_linear_bn_weights takes no norm without an affine map.
            weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
            layer.weight, layer.bias = weight, bias.requires_grad_()
        else:
            alpha, shift = fuse_conv_bn_weights(scale.alpha.reshape(-1, 1), bias_of(scale), *statistics)
            alone = output_scale(alpha, shift, scale.alpha[:, None], hook=False)
            network.set_submodule(str(source.target), alone)
        _skip(node)
        folded += 1
    return folded


def _fold_thresholds(network: fx.GraphModule) -> int:
    """Make scale and batch norm between a layer that gives whole numbers and a sign a threshold; how many norms."""
    layers, whole, folded = _Layers(network), fed_by_signs(network.graph, network), 0
    for node in list(network.graph.nodes):
        norm = _operation(network, node)
        alone = _is(network, node, NORMS) and norm.running_mean is not None and layers.alone(node)
        if not alone or not all(_is_sign(network, user) for user in node.users):
            continue
        source = node.all_input_nodes[0]
        while _is(network, source, MAXIMA) and len(source.users) == 1:
            source = source.all_input_nodes[0]
        scale, before = layers.scale_at(source), source.all_input_nodes
        layer = layers.at(before[0]) if scale is not None and len(source.users) == 1 else None
        if layer is None or layer.bias is not None or layer not in whole:
            continue
        size = layer.weight.abs()
        if (size != size.sign()).any() or size.flatten(1).sum(1).max() > 1 / torch.finfo(size.dtype).eps:
            continue  # its sums are not whole, or rounded
        behind, of = nn.Sequential(scale, norm), layer.weight
        most = size.flatten(1).sum(1)
        direction, shift = threshold(most, partial(_through, behind, of))
        network.set_submodule(str(node.target), output_scale(direction, nn.Parameter(shift), layer.weight, hook=False))
        _skip(source)
        folded += 1
    return folded


def _is_sign(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node compares with 0."""
    return _is(network, node, (BinaryActivation,)) and _operation(network, node).threshold == 0


def _through(behind: nn.Module, weight: Tensor, z: Tensor) -> Tensor:
    """What becomes of z [F], one number a channel of what the layer of this weight gives."""
    found: Tensor = behind(per_channel(z, weight)[None])
    return found.flatten()


def threshold(most: Tensor, value: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """d in {-1, 0, +1} and whole c with sign(d z + c) = sign(value(z)), for each channel and each whole z that may be.

    most: [F], how large abs(z) can be. value: of z [F] what is before the sign [F], rising in z or falling, with its
    rounding.
    """

    def positive(z: Tensor) -> Tensor:
        return value(z) >= 0

    at_least, at_most = positive(-most), positive(most)
    rising = ~at_least & at_most
    below, above = -most, most  # the sign changes between them
    while (above - below).max() > 1:
        middle = ((below + above) / 2).floor()
        upper = positive(middle) == at_most
        below, above = torch.where(upper, below, middle), torch.where(upper, middle, above)
    constant = at_least == at_most
    direction = torch.where(rising, 1.0, -1.0).to(most.dtype).masked_fill(constant, 0)
    shift = torch.where(rising, -above, below)
    return direction, torch.where(constant, torch.where(at_least, 1, -1), shift).to(most.dtype)


@dataclass(frozen=True)
class _Link:
    """An operation between two layers on each channel by itself.

    node: what it is. operation: the module or function. positions: how many of its outputs belong to one channel.
    """

    network: fx.GraphModule
    node: fx.Node
    positions: int = 1

    def carry(self, value: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """What becomes of channels that are everywhere `value` [C], and which of those that are `constant` stay so."""
        operation = _operation(self.network, self.node)
        if _is(self.network, self.node, FLATTENINGS):
            return value.repeat_interleave(self.positions), constant.repeat_interleave(self.positions)
        if _is(self.network, self.node, POOLINGS):
            return value, constant & (value == 0) if _mixes_in_zeros(operation) else constant
        shape = self.node.meta["shape"]
        pixel = value.view(1, -1, *[1] * (len(shape) - 2)).clone()  # the operation may be one in place
        return operation(pixel, *self.node.args[1:], **self.node.kwargs).flatten(), constant

    def keep(self, channels: Tensor) -> Tensor:
        """Drop the parameters of the other channels; which of the outputs belong to those kept."""
        operation = _operation(self.network, self.node)
        if _is(self.network, self.node, NORMS):
            _select(operation, ("weight", "bias", "running_mean", "running_var"), channels)
            operation.num_features = int(channels.sum())
        if is_output_scale(operation):
            _select(operation, (*operation._parameters, *operation._buffers), channels)
        return channels.repeat_interleave(self.positions)


def _mixes_in_zeros(pooling: Any) -> bool:
    """Whether its mean of a constant map may be another one: at the border, or by a divisor of its own."""
    if not isinstance(pooling, AVERAGES):
        return False
    padding = torch.tensor(pooling.padding).any()
    return bool(padding and pooling.count_include_pad) or getattr(pooling, "divisor_override", None) is not None


@dataclass(frozen=True)
class _Chain:
    """Two layers, and what stands between them: only the second one uses what the first gives."""

    first: Any
    links: list[_Link]
    second: Any

    def trim(self) -> tuple[int, int]:
        """Remove dead and unused filters of the first layer; how many of each."""
        dead = ~self.first.weight.flatten(1).any(1)
        value = self.first.weight.new_zeros(len(dead)) if self.first.bias is None else self.first.bias
        constant = dead
        for link in self.links:
            value, constant = link.carry(value, constant)
        if _pads_with_zeros(self.second):
            constant = constant & (value == 0)
        reads = self.second.weight.transpose(0, 1).flatten(1)
        gone = (constant | ~reads.any(1)).view(len(dead), -1).all(1)
        if gone.all():
            gone[0] = False
        if not gone.any():
            return 0, 0
        self._keep(~gone, value.where(constant, 0))
        return int((gone & dead).sum()), int((gone & ~dead).sum())

    def _keep(self, filters: Tensor, value: Tensor) -> None:
        """Drop the other filters; their `value` [inputs of the second layer] goes into its bias."""
        kept = filters
        _select(self.first, ("weight", "bias"), filters)
        for link in self.links:
            kept = link.keep(kept)
        weight = self.second.weight
        constant = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        constant = constant[:, ~kept] @ value[~kept]
        if constant.any():
            bias = self.second.bias
            self.second.bias = nn.Parameter(constant if bias is None else bias + constant)
        self.second.weight = nn.Parameter(weight[:, kept])
        _count(self.first)
        _count(self.second)


def _pads_with_zeros(layer: Any) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return layer.padding == "same" or any(layer.padding)


def _select(module: nn.Module, names: tuple[str, ...], channels: Tensor) -> None:
    """Keep these channels of the tensors that the module has by these names."""
    for name in names:
        tensor = getattr(module, name)
        if tensor is not None:
            setattr(module, name, nn.Parameter(tensor[channels]) if name in module._parameters else tensor[channels])


def _count(layer: Any) -> None:
    """Let the layer say how large its weight is."""
    outputs, inputs = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = outputs, inputs
    else:
        layer.out_channels, layer.in_channels = outputs, inputs


def _chains(network: fx.GraphModule) -> list[_Chain]:
    layers, found = _Layers(network), []
    for start in network.graph.nodes:
        first, node = layers.at(start), start
        if first is None or getattr(first, "groups", 1) > 1:
            continue
        links: list[_Link] = []
        while len(node.users) == 1:
            (user,) = node.users
            second = layers.at(user)
            if second is not None and getattr(second, "groups", 1) == 1:
                found.append(_Chain(first, links, second))
            link = _link(layers, node, user)
            if link is None:
                break
            links.append(link)
            node = user
    return found


def _link(layers: _Layers, node: fx.Node, user: fx.Node) -> _Link | None:
    """What `user` does with what `node` gives, if it does that to each channel by itself."""
    network, before, after = layers.network, node.meta["shape"], user.meta["shape"]
    if _is(network, user, FLATTENINGS):
        return _Link(network, user, math.prod(before[2:])) if after == (before[0], before[1:].numel()) else None
    if _is(network, user, NORMS):
        norm = _operation(network, user)
        return _Link(network, user) if norm.running_mean is not None and layers.alone(user) else None
    if layers.scale_at(user) is not None:
        return _Link(network, user)
    each_channel = _is(network, user, (*ELEMENTWISE, *POOLINGS)) and len(after) == len(before)
    return _Link(network, user) if each_channel else None

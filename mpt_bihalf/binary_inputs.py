"""Which layers of a network a binary activation feeds, so that what they compute with binary weights is a whole number.

Between the two may stand what leaves signs signs: flattening, identities, maxima, and all that only moves values; and
average pooling, behind which sums are whole in units of one over its window.
"""

from __future__ import annotations

import operator
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .activation_modules import SignTerms
from .activations import BinaryActivation
from .binarizable import as_torch_has_it
from .devices import HOST, random_state_kept
from .scale_modules import Gamma
from .usage import META, Usage, copied

SIGNS = frozenset((torch.sign, torch.sgn, "sign", "sgn"))
KEEP_SIGNS = frozenset(
    (nn.Identity, nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)
    + (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    + (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    + (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
    + (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
    + (F.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle, torch.channel_shuffle)
    + (torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.swapaxes, torch.movedim, torch.t)
    + (torch.squeeze, torch.unsqueeze, torch.flip, torch.roll, torch.clone, torch.index_select)
    + (torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, operator.getitem)
    + (
        "flatten",
        "reshape",
        "reshape_as",
        "view",
        "view_as",
        "unflatten",
        "permute",
        "transpose",
        "swapaxes",
        "movedim",
    )
    + ("t", "T", "mT", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "flip", "roll", "index_select")
    + ("contiguous", "clone", "chunk", "split", "unbind", "detach", "float", "double", "half", "to", "type_as")
)
MEANS = frozenset(
    (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
    + (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    + (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean, "mean")
    + (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
)
ALTERING = frozenset((operator.setitem, *(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv"))))


class ScaleStays(UserWarning):
    """It cannot be seen which layers binary activations feed."""


def layers_with_binary_input(model: nn.Module, layers: Mapping[str, nn.Module], use: Usage | None) -> set[str]:
    """The names of those of these layers that are given signs, each time, and whose weights nothing else uses.

    use: of the model's layers on an example, where there was one. Without it the model is traced (torch.fx), and where
    that cannot be, there are none, and a warning says so. Layers with a forward pass of their own are left out, as what
    they do with what they compute is not known. Of layers that share a weight it is all or none.
    """
    if not any(isinstance(module, BinaryActivation) for module in model.modules()) and use is None:
        return set()
    found = _traced(model, layers) if use is None else set(use.binary_inputs)
    terms = [f"{name}.layer" for name, module in model.named_modules() if isinstance(module, SignTerms)]
    found.update(terms if use is None else ())
    found = {name for name in found & layers.keys() if as_torch_has_it(layers[name])}
    sharing = defaultdict(list)
    for name, layer in layers.items():
        sharing[id(layer.weight)].append(name)
    return {name for name in found if found.issuperset(sharing[id(layers[name].weight)])}


class _Tracer(fx.Tracer):
    def __init__(self, whole: Iterable[nn.Module]) -> None:
        super().__init__()
        self.whole = set(whole)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = m in self.whole or isinstance(m, BinaryActivation | Gamma | SignTerms)
        return whole or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module, layers: Mapping[str, nn.Module]) -> set[str]:
    try:
        with random_state_kept(HOST):
            copy = copied(model, META)  # lest the trace be seen in the model: its forward pass is run on stand-ins
            names = {copy.get_submodule(name): name for name in layers}
            graph = _Tracer(names).trace(copy)
    except Exception as fault:  # whatever the network's own code raises when it is given a stand-in for values
        reason = str(fault).strip().partition("\n")[0]
        warnings.warn(
            f"torch.fx cannot trace {type(model).__name__} ({reason}), so it cannot be seen which layers binary "
            "activations feed: their scales stay on the weights; with example=, an input of the model, they can move",
            ScaleStays,
            stacklevel=4,
        )
        return set()
    return {names[layer] for layer in fed_by_signs(graph, copy, means=True) if layer in names}


def fed_by_signs(graph: fx.Graph, root: nn.Module, means: bool = False) -> set[nn.Module]:
    """The modules of a traced network that each call gives signs, and whose tensors nothing else uses.

    means: means of signs do too, and what a `BinaryActivation` gives that has a forward pass of its own.
    """
    keep = KEEP_SIGNS | MEANS if means else KEEP_SIGNS
    made_of: dict[fx.Node, set[fx.Node]] = {}  # for what is signs, the activations that they come from
    fed: dict[nn.Module, set[fx.Node] | None] = {}
    altered: set[fx.Node] = set()
    for node in graph.nodes:
        given = _given(node)
        sources = set().union(*(made_of.get(one, set()) for one in given)) if made_of.keys() >= given else None
        operation: Any = node.target
        if node.op == "call_module":
            operation = root.get_submodule(str(node.target))
            before = fed.get(operation, set())
            fed[operation] = None if before is None or not sources else before | sources
        elif node.op == "get_attr":
            fed[root.get_submodule(str(node.target).rpartition(".")[0])] = None
        if _alters(node, operation):
            altered |= set().union(*(made_of.get(one, set()) for one in node.all_input_nodes))
        elif _makes_signs(operation, means):
            made_of[node] = {node}
        elif sources and _kind(node, operation) in keep:
            made_of[node] = sources
    return {module for module, sources in fed.items() if sources and not sources & altered}


def _given(node: fx.Node) -> set[fx.Node]:
    """What the node works on, be it one value or several; not the sizes and indices beside it."""
    if node.op == "call_module" or not node.args:
        return set(node.all_input_nodes)
    first = node.args[0]
    return {one for one in (first if isinstance(first, list | tuple) else [first]) if isinstance(one, fx.Node)}


def _kind(node: fx.Node, operation: Any) -> Any:
    if node.op == "call_module":
        return type(operation)
    return node.args[1] if operation is getattr else operation


def _makes_signs(operation: Any, means: bool) -> bool:
    if isinstance(operation, BinaryActivation):
        return means or type(operation).forward is BinaryActivation.forward
    return not isinstance(operation, nn.Module) and operation in SIGNS


def _alters(node: fx.Node, operation: Any) -> bool:
    """Whether the node may write into what it is given."""
    name = getattr(operation, "__name__", operation if isinstance(operation, str) else "")
    in_place = name.endswith("_") and not name.endswith("__")
    written = node.kwargs.get("inplace") or "out" in node.kwargs or getattr(operation, "inplace", False)
    return bool(in_place or written) or (not isinstance(operation, nn.Module) and operation in ALTERING)

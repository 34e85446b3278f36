"""Which layers of a network a binary activation feeds, so that what they compute with binary weights is a whole number.

Between the two may stand what leaves signs signs: flattening, identities, maxima, and all that only moves values; and
average pooling, behind which sums are whole in units of one over its window.
"""

from __future__ import annotations

import operator
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .activations import BinaryActivation
from .binarizable import as_torch_has_it
from .usage import Usage

SIGNS = frozenset((torch.sign, torch.sgn, "sign", "sgn"))
KEEP_SIGNS = frozenset(
    (nn.Identity, nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)
    + (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    + (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    + (F.max_pool1d, F.max_pool2d, F.max_pool3d)
    + (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
    + (F.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle, torch.channel_shuffle)
    + (torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze)
    + (torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, torch.clone, operator.getitem)
    + ("flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "expand", "repeat", "unflatten")
    + ("contiguous", "clone", "chunk", "split", "detach", "float", "double", "half", "to")
)
MEANS = frozenset(
    (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
    + (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    + (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean, "mean")
    + (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
)


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
        return m in self.whole or isinstance(m, BinaryActivation) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module, layers: Mapping[str, nn.Module]) -> set[str]:
    try:
        graph = _Tracer(layers.values()).trace(model)
    except Exception as fault:  # whatever the network's own code raises when it is given a stand-in for values
        reason = str(fault).strip().partition("\n")[0]
        warnings.warn(
            f"torch.fx cannot trace {type(model).__name__} ({reason}), so it cannot be seen which layers binary "
            "activations feed: their scales stay on the weights; with example=, an input of the model, they can move",
            ScaleStays,
            stacklevel=4,
        )
        return set()
    names = {layer: name for name, layer in layers.items()}
    return {names[layer] for layer in fed_by_signs(graph, model, KEEP_SIGNS | MEANS) if layer in names}


def fed_by_signs(graph: fx.Graph, root: nn.Module, keep: Set[Any] = KEEP_SIGNS) -> set[nn.Module]:
    """The modules of a traced network that each call gives signs, and whose tensors nothing else uses.

    keep: modules, functions and methods that may stand between.
    """
    signs: set[fx.Node] = set()
    fed: dict[nn.Module, bool] = {}
    for node in graph.nodes:
        given = node.all_input_nodes
        all_signs = bool(given) and signs.issuperset(given)
        operation: Any = node.target
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            fed[module] = fed.get(module, True) and all_signs
            operation = BinaryActivation if isinstance(module, BinaryActivation) else type(module)
        elif node.op == "get_attr":
            owner = root.get_submodule(str(node.target).rpartition(".")[0])
            fed[owner] = False
        if operation is BinaryActivation or operation in SIGNS or (all_signs and operation in keep):
            signs.add(node)
    return {module for module, always in fed.items() if always}

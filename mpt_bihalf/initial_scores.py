"""Scores for masks that are fixed before training: of each weight of a network as it is drawn, how much it matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .devices import HOST

Scores: TypeAlias = dict[str, Tensor]
# What GraSP's authors divide logits by.
TEMPERATURE = 200


@dataclass(eq=False)
class Untrained:
    """A network before training, as the rules see it.

    model: a plain copy of it, its own to change. weights: by the layer's name, the parameters of `model` that are to be
    masked, as layers use them (alpha * B under a binary method). drawn: W of the same layers, as it was drawn.
    batches: pairs of images [B, C, H, W] and classes, int64 [B], the same each time. kept: by layer what is not yet
    pruned, bool, all at first. signs: the names of its modules that make activations binary. generator: what a rule
    draws its chance from, on the host.
    """

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    drawn: Mapping[str, Tensor]
    batches: Iterable[tuple[Tensor, Tensor]]
    kept: Mapping[str, Tensor]
    signs: Sequence[str] = ()
    generator: torch.Generator = field(default_factory=torch.Generator)

    @cached_property
    def linear(self) -> nn.Module:
        """A copy in float64 that is linear in each layer where weights and inputs are positive.

        All its parameters are positive, its batch norms those of a fresh network in evaluation, and signs, and the
        bound that ResNet-20 puts behind its additions, let all through.
        """
        model = deepcopy(self.model).eval().double()
        bounds = [name for name, module in model.named_modules() if isinstance(module, nn.Hardtanh)]
        for name in (*self.signs, *bounds):
            model.set_submodule(name, nn.Identity())
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.reset_running_stats()
        for parameter in model.parameters():
            parameter.detach_().abs_().requires_grad_(False)
        return model

    def losses(self, temperature: float = 1.0) -> Iterable[Tensor]:
        """The cross-entropy of each batch, summed over its images, of logits / temperature, in training mode."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        for x, y in self.batches:
            yield F.cross_entropy(self.model(x) / temperature, y, reduction="sum")

    def gradients(self, of: Tensor, again: bool = False) -> list[Tensor]:
        """d(of)/dw of each layer; again: with a graph of its own."""
        return [*torch.autograd.grad(of, [*self.weights.values()], create_graph=again, materialize_grads=True)]


ScoreRule: TypeAlias = Callable[[Untrained], Scores]


def random(network: Untrained) -> Scores:
    """Uniform in [0, 1): a random mask."""
    return {
        name: torch.rand(w.shape, generator=network.generator, dtype=torch.float32, device=HOST).to(w.device)
        for name, w in network.weights.items()
    }


def magnitude(network: Untrained) -> Scores:
    """abs(W), as it was drawn."""
    _refuse_one_size(network, "magnitude")
    return {name: weight.abs() for name, weight in network.drawn.items()}


def snip(network: Untrained) -> Scores:
    """abs(w dL/dw), the gradient of a multiplicative mask where that is 1 (SNIP, Lee et al. 2019).

    L is the cross-entropy summed over all images, w the weight in use.
    """
    total = {name: torch.zeros_like(w) for name, w in network.weights.items()}
    for loss in network.losses():
        for of_layer, gradient in zip(total.values(), network.gradients(loss), strict=True):
            of_layer.add_(gradient)
    return {name: (w.detach() * total[name]).abs() for name, w in network.weights.items()}


def grasp(network: Untrained) -> Scores:
    """w (H g) with g = dL/dw and H the Hessian of L, the largest kept (GraSP, Wang et al. 2020).

    L is the cross-entropy of logits / 200, summed over all images. H g is the gradient of <g, dL/dw>, g a constant, by
    batches: L is their sum.
    """
    if network.signs:
        raise ValueError("grasp takes second derivatives, which binary activations have not: take real ones")
    g = [torch.zeros_like(w) for w in network.weights.values()]
    for loss in network.losses(TEMPERATURE):
        for of_layer, gradient in zip(g, network.gradients(loss), strict=True):
            of_layer.add_(gradient)
    total = {name: torch.zeros_like(w) for name, w in network.weights.items()}
    for loss in network.losses(TEMPERATURE):
        inner = torch.stack([(a * b).sum() for a, b in zip(g, network.gradients(loss, again=True), strict=True)]).sum()
        for of_layer, gradient in zip(total.values(), network.gradients(inner), strict=True):
            of_layer.add_(gradient)
    return {name: w.detach() * total[name] for name, w in network.weights.items()}


def synflow(network: Untrained) -> Scores:
    """a dR/da with a = abs(W): the share of R that goes through each weight (SynFlow, Tanaka et al. 2020).

    R is the sum of the outputs of `network.linear`, under the mask so far, for an image of ones. float64, at least 0.
    W as it was drawn: of binary weights alpha * B, each of a linear layer would have the same score. Of a network of
    layers without bias the scores of each layer have the sum R.
    """
    _refuse_one_size(network, "synflow")
    x, _ = next(iter(network.batches))
    a = {name: network.drawn[name].double().abs().mul(network.kept[name]).requires_grad_() for name in network.weights}
    R = functional_call(
        network.linear,
        {f"{name}.weight": of_layer for name, of_layer in a.items()},
        torch.ones_like(x[:1], dtype=torch.float64),
    ).sum()
    gradients = torch.autograd.grad(R, [*a.values()], materialize_grads=True)
    return {name: (of_layer * g).detach() for (name, of_layer), g in zip(a.items(), gradients, strict=True)}


def _refuse_one_size(network: Untrained, rule: str) -> None:
    sizes = [weight.abs().aminmax() for weight in network.drawn.values() if not weight.is_meta]
    if sizes and all(lowest == highest for lowest, highest in sizes):
        raise ValueError(f"{rule} ranks weights by their size, and in each layer all have one: draw them otherwise")

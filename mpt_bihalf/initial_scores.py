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
from torch.nn.attention import SDPBackend, sdpa_kernel

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

        All its parameters are positive, its batch norms those of a fresh network in evaluation. Signs, norms by the
        statistics of the image (of groups, layers, instances), and the bound that ResNet-20 puts behind its additions,
        let all through.
        """
        model = deepcopy(self.model).eval().double()
        through = [name for name, module in model.named_modules() if _lets_through(module)]
        for name in (*self.signs, *through):
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
        self.first_images()
        for x, y in self.batches:
            yield F.cross_entropy(self.model(x) / temperature, y, reduction="sum")

    def first_images(self) -> Tensor:
        """The images of the first batch. ValueError where there is none."""
        for x, _ in self.batches:
            return x
        raise ValueError("the rule looks at images: give it batches")

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
    return _some({name: (w.detach() * total[name]).abs() for name, w in network.weights.items()}, "snip")


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
    with sdpa_kernel(SDPBackend.MATH):  # of torch's attention the one that has second derivatives
        for loss in network.losses(TEMPERATURE):
            once = network.gradients(loss, again=True)
            inner = torch.stack([(a * b).sum() for a, b in zip(g, once, strict=True)]).sum()
            for of_layer, gradient in zip(total.values(), network.gradients(inner), strict=True):
                of_layer.add_(gradient)
    return _some({name: w.detach() * total[name] for name, w in network.weights.items()}, "grasp")


def synflow(network: Untrained) -> Scores:
    """a dR/da with a = abs(W): the share of R that goes through each weight (SynFlow, Tanaka et al. 2020).

    R is the sum of the outputs of `network.linear`, under the mask so far, for an image of ones. float64, at least 0.
    W as it was drawn: of binary weights alpha * B, each of a linear layer would have the same score. Of a network of
    layers without bias the scores of each layer have the sum R.
    """
    _refuse_one_size(network, "synflow")
    x = network.first_images()
    a = {name: network.drawn[name].double().abs().mul(network.kept[name]).requires_grad_() for name in network.weights}
    R = functional_call(
        network.linear,
        {f"{name}.weight": of_layer for name, of_layer in a.items()},
        torch.ones_like(x[:1], dtype=torch.float64),
    ).sum()
    gradients = torch.autograd.grad(R, [*a.values()], materialize_grads=True)
    scores = {name: (of_layer * g).detach() for (name, of_layer), g in zip(a.items(), gradients, strict=True)}
    for name, of_layer in scores.items():
        if of_layer.numel() and not of_layer.is_meta and of_layer.amin() < 0:
            raise ValueError(
                f"synflow is for networks that positive weights make linear, and behind {name!r} this one is not"
            )
    return scores


def _lets_through(module: nn.Module) -> bool:
    """Whether the linear network does without the module: by what it gives positive weights would not be linear."""
    of_image = nn.GroupNorm | nn.LayerNorm | nn.RMSNorm | nn.LocalResponseNorm | nn.Hardtanh
    instance = isinstance(module, nn.modules.instancenorm._InstanceNorm) and not module.track_running_stats
    return instance or isinstance(module, of_image)


def _some(scores: Scores, rule: str) -> Scores:
    """The scores. ValueError where all are 0."""
    known = [of_layer.any() for of_layer in scores.values() if not of_layer.is_meta]
    if known and not torch.stack(known).any():
        raise ValueError(f"{rule} gives every weight the score 0: none bears on the loss")
    return scores


def _refuse_one_size(network: Untrained, rule: str) -> None:
    sizes = [weight.abs().aminmax() for weight in network.drawn.values() if not weight.is_meta]
    if sizes and all(lowest == highest for lowest, highest in sizes):
        raise ValueError(f"{rule} ranks weights by their size, and in each layer all have one: draw them otherwise")

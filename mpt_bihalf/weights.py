"""Put a method on the weights of any `nn.Module`, read the binary weights back, bake them in.

A method is a parametrization (`torch.nn.utils.parametrize`): no layer class is rewritten, and `state_dict`, `deepcopy`
and `to` go on working. The latent weight W stays where torch keeps it, `layer.parametrizations.weight.original`; the
scores, if any, are `layer.parametrizations.weight[0].scores`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from math import sqrt
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import kernels
from .activations import BinaryActivation
from .counts import Number, fraction_within
from .devices import autocast
from .filters import filters
from .gradients import LATENT_GRADIENTS, SCORE_GRADIENTS, Gradient
from .latent import Latent
from .masks import SCOPES, GlobalRanking, check_places, edge_popup
from .methods import Method, find_method
from .scales import SCALES, Scale, scale_of
from .spare import Spare
from .transport import check_rankable

BINARIZABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
INITS = ("kaiming_normal", "signed_constant", "equal_bits", "keep")
SKIP_RULES = ("first", "last", "downsample")

Model = TypeVar("Model", bound=nn.Module)
Part = TypeVar("Part")


class BinaryWeight(nn.Module):
    """The parametrization: latent weight in, alpha * B out (`binary` gives B itself).

    scores: trained float tensor in the shape of the weight under the frozen-weight methods, else None.
    progress: how far the training is (`set_progress`), for gradients with a schedule.
    """

    scores: nn.Parameter | None

    def __init__(self, method: Method, weight: Tensor, prune_rate: Number, p_pos: Number, scope: str) -> None:
        super().__init__()
        self.method = method
        self.prune_rate, self.p_pos, self.scope = prune_rate, p_pos, scope
        self.ranking: GlobalRanking | None = None
        self.index = 0
        self.progress = 0.0
        self.register_parameter("scores", nn.Parameter(torch.zeros_like(weight)) if self._frozen else None)
        self._hints: dict[str, Tensor] = {}
        self._spare = Spare()
        self._before: tuple[Tensor, tuple[int, int], Latent] | None = None  # weight, its state, what came of it

    @property
    def _frozen(self) -> bool:
        return self.method.trains == "scores"

    def forward(self, weight: Tensor) -> Tensor:
        latent, mask, positive, alpha = self._decide(weight)
        return cast(Tensor, _StraightThrough.apply(weight, self.scores, positive, mask, alpha, latent, self.method))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to `layer.weight` sets the latent weight."""
        return weight

    def binary(self, weight: Tensor) -> Tensor:
        """B of the latent `weight`: -1, 0 (pruned), +1 in its shape and dtype."""
        return self.scaled_binary(weight)[0]

    def scaled_binary(self, weight: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """B of the latent `weight`, and alpha >= 0, which broadcasts over it: the weight in use is alpha * B.

        mask: bool in the weight's shape, what to keep in the place of what the method would keep.
        """
        _, mask, positive, alpha = self._decide(weight, mask)
        return kernels.signed(positive, mask, weight.new_ones(())), alpha

    @torch.no_grad()
    def _decide(self, weight: Tensor, mask: Tensor | None = None) -> tuple[Latent, Tensor | None, Tensor, Tensor]:
        assert self.method.binarizer is not None
        # Mixed precision is for the layers: what is kept, its sign and its scale are not decided in fewer digits.
        with autocast(weight.device, None):
            latent = self._look_at(weight)
            if mask is None and self.method.mask is not None:
                mask = self.method.mask(latent)
            return latent, mask, self.method.binarizer(latent, mask), scale_of(self.method.scale, latent, mask)

    def _look_at(self, weight: Tensor) -> Latent:
        """A Latent of this weight. As long as a frozen W does not change, what follows from it is worked out once.

        Changes are seen by the tensor's version, as autograd sees them: write to W under `torch.no_grad()`, not through
        `.data`.
        """
        scores = None if self.scores is None else self.scores.detach()
        settings = self.prune_rate, self.p_pos, self.scope
        latent = Latent(
            weight.detach(), scores, *settings, self.ranking, self.index, self.progress, self._hints, self._spare
        )
        # Tensors made in inference mode could not be used in training.
        if self._frozen and not weight.is_inference() and not torch.is_inference_mode_enabled():
            now = (weight._version, 0 if weight.is_meta else weight.data_ptr())
            if self._before is not None and self._before[0] is weight and self._before[1] == now:
                latent.take_over(self._before[2])
            self._before = weight, now, latent
        return latent

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_before": None}  # that is of this weight, not of a copy's

    def extra_repr(self) -> str:
        return f"{self.method.name}, prune_rate={self.prune_rate}, p_pos={self.p_pos}, scope={self.scope}"


class _StraightThrough(torch.autograd.Function):
    """Forward alpha * B; backward the method's rule for what it trains."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scores: Tensor | None,
        positive: Tensor,
        mask: Tensor | None,
        alpha: Tensor,
        latent: Latent,
        method: Method,
    ) -> Tensor:
        ctx.save_for_backward(weight, scores, positive, alpha)  # lets autograd notice a change before the backward pass
        ctx.latent, ctx.method = latent, method
        used = kernels.signed(positive, mask, alpha, latent.spare)
        return used.contiguous(memory_format=_layout(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _, _, positive, alpha = ctx.saved_tensors
        gradient = ctx.method.gradient(grads[0], ctx.latent, positive, alpha)
        of_weight, of_scores = (None, gradient) if ctx.method.trains == "scores" else (gradient, None)
        return of_weight, of_scores, None, None, None, None, None


def _layout(weight: Tensor) -> torch.memory_format:
    channels_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not weight.is_contiguous() else torch.contiguous_format


def binarize_weights(
    model: Model,
    method: str | Method = "mpt-bihalf",
    prune_rate: Number = 0.5,
    p_pos: Number = 0.5,
    scope: str = "layer",
    skip: Sequence[str] | str = (),
    init: str = "kaiming_normal",
    seed: int | None = None,
    *,
    scale: str | Scale | None = None,
    latent_gradient: str | Gradient | None = None,
    score_gradient: str | Gradient | None = None,
    train_affine: bool = False,
    learn_mask: bool = True,
) -> Model:
    """Put a method on every convolution and linear weight of `model`, in place, and return the model.

    That is the weight of each `Conv1d`, `Conv2d`, `Conv3d` and `Linear`; parameters that belong to no such layer (the
    `in_proj_weight` of attention, say) stay as they are, and so do transposed convolutions.

    method: a name in `METHODS` or a `Method` of your own.
    prune_rate: fraction *pruned*, in [0, 1), for methods with a mask. (The reference MPT code uses a flag of that name
        for the fraction kept.)
    p_pos: prior of +1, in [0, 1], for methods that set the bit ratio; 1/2 is bi-half.
    scope: `layer`, `filter` or `global`: what the scores are ranked within, for the methods where that is open.
    skip: layers to leave as they are, by name (as in `model.named_modules()`) or by rule: `first` and `last` of the
        convolution and linear layers, `downsample` (a residual network's shortcut convolutions), `none`.
    init: how latent weights begin: `kaiming_normal` (fan-in, gain sqrt(2), the fan being the connections kept),
        `signed_constant` (that standard deviation times the sign of a draw), `equal_bits` (in each filter w and -w for
        each draw w, so that sign, irnet and bihalf all begin with the same signs, half of them +1), or `keep` those
        there. Scores always begin Kaiming uniform with a = sqrt(5).
    seed: of the draws; None draws from torch's global generator. A seed gives the same values on every device.
    scale, latent_gradient, score_gradient: other parts than the method's own, by name or as a function.
    train_affine: under the frozen-weight methods, train biases and the affine parameters of norms too ('+BN').
        By default those are frozen; the layers in `skip` stay as they are, trainable.
    learn_mask: False freezes the scores as they were drawn: a random mask of the same count, the control for what
        learning the mask brings.

    Raises ValueError for anything unknown or out of range, and then leaves the model as it was.

    >>> model = binarize_weights(torchvision.models.resnet18(num_classes=10), "mpt-bihalf", prune_rate=0.5,
    ...                          skip=("first", "last", "downsample"))
    """
    method = _with_parts(find_method(method), scale, latent_gradient, score_gradient)
    kept = 1 - fraction_within(prune_rate, "prune_rate", below_one=True)
    fraction_within(p_pos, "p_pos")
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; known: {', '.join(SCOPES)}")
    if init not in INITS:
        raise ValueError(f"unknown init {init!r}; known: {', '.join(INITS)}")
    layers = _layers_to_binarize(model, skip)
    if init == "keep":
        for name, layer in layers.items():
            check_rankable(layer.weight, f"the weight of layer {name!r}")
    ranking = GlobalRanking(prune_rate) if scope == "global" and method.mask is edge_popup else None
    if ranking is not None:
        check_places([layer.weight.numel() for layer in layers.values()], prune_rate)

    generator = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
    if init != "keep":
        for layer in layers.values():
            draw_latent(layer.weight, 1.0 if method.mask is None else float(kept), init, generator)
    if method.binarizer is None:
        return model
    for index, layer in enumerate(layers.values()):
        binary = BinaryWeight(method, layer.weight, prune_rate, p_pos, scope)
        if ranking is not None:
            binary.ranking, binary.index = ranking, index
            ranking.layers.append(binary)
        if binary.scores is not None:
            _draw_scores(binary.scores, generator)
            binary.scores.requires_grad_(learn_mask)
            layer.weight.requires_grad_(False)
        if method.trains == "signs":
            with torch.no_grad():
                layer.weight.copy_(torch.where(layer.weight >= 0, 1, -1))
        # unsafe: shape and dtype are right by construction, and a global ranking can answer only once all are there.
        parametrize.register_parametrization(layer, "weight", binary, unsafe=True)
    if method.trains == "scores" and not train_affine:
        _freeze_affine(model, layers.values())
    return model


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell what is binary how far the training is: epoch / epochs, in [0, 1) (EDE's schedule follows it)."""
    for module in model.modules():
        if isinstance(module, BinaryWeight | BinaryActivation):
            module.progress = progress


def set_prune_rate(model: nn.Module, prune_rate: Number) -> None:
    """Prune this fraction of the masked layers from now on, in [0, 1); ValueError as `binarize_weights` raises it."""
    fraction_within(prune_rate, "prune_rate", below_one=True)
    parts = [part for _, part, _ in binary_layers(model)]
    rankings = {id(part.ranking): part.ranking for part in parts if part.ranking is not None}
    for ranking in rankings.values():
        check_places([cast(Tensor, layer.scores).numel() for layer in ranking.layers], prune_rate)
    for ranking in rankings.values():
        ranking.prune_rate = prune_rate
        ranking.forget()
    for part in parts:
        part.prune_rate = prune_rate


@torch.no_grad()
def shuffle_scores(model: nn.Module, seed: int) -> None:
    """Permute the scores of each layer at random, in place: a mask of the same counts that knows no place.

    Within the filters where the mask rule ranks within filters, so that each keeps as many as before. The control for
    what a finished mask owes to where its weights are, beyond how many each layer keeps.
    """
    generator = torch.Generator().manual_seed(seed)
    for _, part, weight in binary_layers(model):
        if part.scores is not None:
            whole = part.method.scoped and part.scope != "filter"
            rows = part.scores.reshape(1, -1) if whole else filters(part.scores)
            order = torch.rand(rows.shape, generator=generator).argsort(1).to(rows.device)
            part.scores.copy_(rows.gather(1, order).view(weight.shape))


def binary_layers(model: nn.Module) -> Iterator[tuple[str, BinaryWeight, Tensor]]:
    """The name, the parametrization and the latent weight of each binarized layer, in the model's order."""
    for name, module in model.named_modules():
        for part in _parametrizations(module):
            if isinstance(part, BinaryWeight):
                yield name, part, cast(Tensor, cast(Any, module).parametrizations.weight.original)


def binary_weights(model: nn.Module) -> dict[str, Tensor]:
    """B of each binarized layer by name: -1, 0 (pruned), +1 in the shape and dtype of its weight.

    Raises ValueError, naming the layer, for a NaN in latent weights or scores.
    """
    _refuse_nan(model)
    return {name: part.binary(weight) for name, part, weight in binary_layers(model)}


def find_nan(model: nn.Module) -> str | None:
    """The name of the first binarized layer with a NaN in its latent weights or scores; None if there is none.

    A NaN never leaves a trained tensor, so it is enough to look now and then. Waits for the device, once.
    """
    names, flags = [], []
    for name, part, weight in binary_layers(model):
        for tensor in (weight, part.scores):
            if tensor is not None and not tensor.is_meta:
                names.append(name)
                flags.append(tensor.detach().isnan().any())
    found = torch.stack(flags).tolist() if flags else []
    return names[found.index(True)] if any(found) else None


def bake_weights(model: Model) -> Model:
    """A plain copy of a binarized model: its weights are alpha * B, and it gives the same outputs to the last bit.

    Nothing of this package is left in the copy; it can be pickled and exported. `model` stays as it is. Raises
    ValueError, naming the layer, for a NaN in latent weights or scores.
    """
    _refuse_nan(model)
    baked = deepcopy(model)
    with torch.no_grad():
        used = {id(module): cast(Tensor, module.weight).clone() for module in baked.modules() if _is_binarized(module)}
    for module in baked.modules():
        if id(module) in used:
            # deepcopy shares the class that torch made for the parametrized layer, and removal edits the class.
            parametrized = type(module)
            module.__class__ = type(parametrized.__name__, parametrized.__bases__, dict(vars(parametrized)))
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight = nn.Parameter(used[id(module)])
            for name in list(module._parameters):  # the weight first again, as in a layer that was never parametrized
                if name != "weight":
                    module._parameters[name] = module._parameters.pop(name)
    return baked


def _refuse_nan(model: nn.Module) -> None:
    layer = find_nan(model)
    if layer is not None:
        raise ValueError(f"layer {layer!r} has NaN in its latent weights or scores")


def _parametrizations(module: nn.Module) -> Sequence[nn.Module]:
    return module.parametrizations.weight if parametrize.is_parametrized(module, "weight") else ()  # type: ignore


def _is_binarized(module: nn.Module) -> bool:
    return any(isinstance(part, BinaryWeight) for part in _parametrizations(module))


def _with_parts(
    method: Method,
    scale: str | Scale | None,
    latent_gradient: str | Gradient | None,
    score_gradient: str | Gradient | None,
) -> Method:
    return replace(
        method,
        scale=_part(scale, SCALES, "scale") or method.scale,
        latent_gradient=_part(latent_gradient, LATENT_GRADIENTS, "latent_gradient") or method.latent_gradient,
        score_gradient=_part(score_gradient, SCORE_GRADIENTS, "score_gradient") or method.score_gradient,
    )


def _part(choice: str | Part | None, known: dict[str, Part], kind: str) -> Part | None:
    if isinstance(choice, str):
        if choice not in known:
            raise ValueError(f"unknown {kind} {choice!r}; known: {', '.join(known)}")
        return known[choice]
    return choice


def _layers_to_binarize(model: nn.Module, skip: Sequence[str] | str) -> dict[str, Any]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, BINARIZABLE)}
    names = list(found)
    skipped = set()
    for entry in (skip,) if isinstance(skip, str) else skip:
        if entry in found:
            skipped.add(entry)
        elif entry == "none":
            continue
        elif entry == "first":
            skipped.update(names[:1])
        elif entry == "last":
            skipped.update(names[-1:])
        elif entry == "downsample":
            skipped.update(name for name, layer in found.items() if _on_shortcut(name, layer))
        else:
            raise ValueError(
                f"skip: no convolution or linear layer is called {entry!r}; rules: {', '.join(SKIP_RULES)}; "
                f"layers: {', '.join(names)}"
            )
    layers = {name: module for name, module in found.items() if name not in skipped}
    if not layers:
        raise ValueError("no convolution or linear layer is left to binarize")
    for name, layer in layers.items():
        if _is_binarized(layer):
            raise ValueError(f"layer {name!r} is binarized already; bake_weights(model) gives a plain copy")
        if parametrize.is_parametrized(layer, "weight") or "weight" not in layer._parameters:
            raise ValueError(f"layer {name!r}: its weight is computed (weight_norm?), not a parameter; name it in skip")
        if layer.weight.is_complex():
            raise ValueError(f"layer {name!r} has complex weights")
        if nn.parameter.is_lazy(layer.weight):
            raise ValueError(f"layer {name!r} has no weight yet: run the model once on an input before binarizing it")
        if layer.weight.numel() == 0:
            raise ValueError(f"layer {name!r} has an empty weight, {tuple(layer.weight.shape)}")
    return layers


def _on_shortcut(name: str, layer: nn.Module) -> bool:
    """Whether a residual network's layer is on a shortcut, by what resnets, regnets and MaxViTs call those."""
    parts = set(name.split("."))
    # A linear layer of that name is attention's.
    return bool({"downsample", "shortcut"} & parts) or ("proj" in parts and not isinstance(layer, nn.Linear))


def draw_latent(weight: Tensor, kept: float, init: str, generator: torch.Generator) -> None:
    """Kaiming normal over the `kept` share of the fan-in, drawn where the generator lives: the same on every device."""
    if weight.is_meta:
        return
    std = sqrt(2 / (kept * weight[0].numel()))
    draw = torch.randn(weight.shape, generator=generator, device=generator.device)
    if init == "signed_constant":
        draw = torch.where(draw >= 0, 1.0, -1.0)
    elif init == "equal_bits":
        draw = _paired(draw, generator)
    with torch.no_grad():
        weight.copy_(draw.mul_(std))


def _paired(draw: Tensor, generator: torch.Generator) -> Tensor:
    """In each filter half of the draws and their negatives, in random order; a weight left over is barely positive."""
    rows = filters(draw)
    half = rows[:, : rows.shape[1] // 2]
    left_over = half.abs().amin(1, keepdim=True) if half.numel() else rows.abs()
    paired = torch.cat([half, -half, left_over], dim=1)[:, : rows.shape[1]]
    order = torch.rand(rows.shape, generator=generator, device=generator.device).argsort(1)
    return paired.gather(1, order).view(draw.shape)


def _draw_scores(scores: Tensor, generator: torch.Generator) -> None:
    """Kaiming uniform with a = sqrt(5): uniform within 1 / sqrt(fan-in)."""
    if scores.is_meta:
        return
    bound = 1 / sqrt(scores[0].numel())
    draw = torch.rand(scores.shape, generator=generator, device=generator.device)
    with torch.no_grad():
        scores.copy_(draw.mul_(2 * bound).sub_(bound))


def _freeze_affine(model: nn.Module, binarized: Iterable[nn.Module]) -> None:
    frozen = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU)
    for module in model.modules():
        if isinstance(module, frozen):
            module.requires_grad_(False)
    for layer in binarized:
        if isinstance(layer.bias, Tensor):
            layer.bias.requires_grad_(False)

"""A layer's weight in use as operators of torch, which compilers and exporters keep whole in their graphs.

`binary_weight` is what `parametrization.BinaryWeight` does in a pass, `binary_weight_backward` its gradient, and
`global_masks` the ranking of all layers. Each decides with eager mode's own functions, so bit for bit as that does. A
rule says in text what a method and its settings are, so that an exported program needs this package and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from .binarizers import BINARIZERS
from .counts import Number, as_fraction
from .gradients import LATENT_GRADIENTS, SCORE_GRADIENTS, of_learned_scale
from .kernels import signed
from .layer import Layer
from .masks import MASKS
from .methods import Method
from .ranking import masks_together
from .scales import SCALES, scale_of

PARTS: dict[str, dict[str, Any]] = {
    "binarizer": BINARIZERS,
    "mask": MASKS,
    "scale": SCALES,
    "latent_gradient": LATENT_GRADIENTS,
    "score_gradient": SCORE_GRADIENTS,
}
OWN = "own-"  # a part that has no name begins so; the rest is its place in this process's list of them
_own: list[Any] = []


def rule_of(method: Method, prune_rate: Number, p_pos: Number, scope: str) -> str:
    """This method with these settings, as text that `method_of` reads."""
    parts = {kind: _name(getattr(method, kind), known) for kind, known in PARTS.items()}
    numbers = {"prune_rate": str(as_fraction(prune_rate)), "p_pos": str(as_fraction(p_pos))}
    return json.dumps({"name": method.name, "trains": method.trains, **parts, **numbers, "scope": scope})


def method_of(rule: str) -> tuple[Method, Fraction, Fraction, str]:
    """The method, prune_rate, p_pos and scope of a rule.

    Raises ValueError for a part that is not registered, as one of one's own is in another process.
    """
    told = json.loads(rule)
    parts = {kind: _part(told.pop(kind), kind, known) for kind, known in PARTS.items()}
    method = Method(told["name"], told["trains"], **parts)
    return method, Fraction(told["prune_rate"]), Fraction(told["p_pos"]), told["scope"]


def _name(part: Any, known: dict[str, Any]) -> str | None:
    if part is None:
        return None
    for name, value in known.items():
        if value == part:
            return name
    if part not in _own:
        _own.append(part)
    return f"{OWN}{_own.index(part)}"


def _part(name: str | None, kind: str, known: dict[str, Any]) -> Any:
    if name is None or name in known:
        return known[name] if name else None
    place = name.removeprefix(OWN)
    if not (place != name and int(place) < len(_own)):
        raise ValueError(f"there is no {kind} {name!r} here: register it, as where the model was exported")
    return _own[int(place)]


# What both operators of a layer begin with.
ASKED = "Tensor weight, Tensor? scores, Tensor[] all_scores, int index, str rule, Tensor progress"


def _layer(asked: Sequence[Any]) -> tuple[Method, Layer]:
    weight, scores, all_scores, index, rule, *_ = asked
    method, prune_rate, p_pos, scope = method_of(rule)
    return method, Layer(weight, scores, prune_rate, p_pos, scope, 0.0, all_scores, index)


# What a learned scale is the last argument as; programs exported before there were any have none.
LEARNED = "Tensor? learned=None"


def _mask_and_scale(asked: Sequence[Any], learned: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Of what comes behind `ASKED`, the last of which torch leaves out where it is None, or gives by name."""
    _, _, _, _, _, _, mask, *rest = asked
    return mask, rest[0] if rest else learned


@torch.library.custom_op(
    "mpt_bihalf::binary_weight",
    mutates_args=(),
    schema=f"({ASKED}, Tensor? mask, {LEARNED}) -> (Tensor, Tensor, Tensor)",
)
def binary_weight(*asked: Any, learned: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """alpha * B, where the sign is +1 (bool), and alpha, of W [F, ...] and S.

    all_scores: S of all layers that are ranked together, of which this is the `index`-th. progress: 0-dim float64 on
    the host. mask: bool in the shape of W, what is kept in the place of what the method would keep. learned: a of a
    learned scale, [F, 1, ...].
    """
    method, layer = _layer(asked)
    mask, layer.alpha = _mask_and_scale(asked, learned)
    kept, positive, alpha = method.decide(layer, mask)
    used = signed(positive, kept, alpha).contiguous(memory_format=layout(layer.weight))
    return used, positive.contiguous(), alpha.contiguous()


@binary_weight.register_fake
def _(*asked: Any, learned: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    method, layer = _layer(asked)
    _, layer.alpha = _mask_and_scale(asked, learned)
    positive = torch.empty_like(layer.weight, dtype=torch.bool, memory_format=torch.contiguous_format)
    alpha = scale_of(method.scale, layer, positive, positive)
    return torch.empty_like(layer.weight, memory_format=layout(layer.weight)), positive, alpha.contiguous()


@torch.library.custom_op(
    "mpt_bihalf::binary_weight_backward",
    mutates_args=(),
    schema=f"({ASKED}, Tensor? mask, Tensor positive, Tensor alpha, Tensor g) -> Tensor",
)
def binary_weight_backward(*asked: Any) -> Tensor:
    """The gradient of what the method trains, W or S, of the gradient g of the loss at alpha * B."""
    *_, progress, mask, positive, alpha, g = asked
    method, layer = _layer(asked)
    layer.kept = method.kept(layer, mask)
    layer.progress = progress.item()  # of the host: no device is waited for
    return _like_trained(*asked).copy_(method.gradient(g, layer, positive, alpha))  # never g itself


@binary_weight_backward.register_fake
def _like_trained(weight: Tensor, scores: Tensor, all_scores: Any, index: int, rule: str, *others: Any) -> Tensor:
    trained = scores if method_of(rule)[0].trains == "scores" else weight
    return torch.empty_like(trained, memory_format=layout(trained))


@torch.library.custom_op(
    "mpt_bihalf::learned_scale_backward",
    mutates_args=(),
    schema=f"({ASKED}, Tensor? mask, Tensor positive, Tensor learned, Tensor g) -> Tensor",
)
def learned_scale_backward(*asked: Any) -> Tensor:
    """The gradient of a learned scale, [F, 1, ...], of the gradient g of the loss at alpha * B."""
    mask, positive, learned, g = asked[-4:]
    method, layer = _layer(asked)
    layer.kept, layer.alpha = method.kept(layer, mask), learned
    return of_learned_scale(g, layer, positive)


@learned_scale_backward.register_fake
def _(*asked: Any) -> Tensor:
    return torch.empty_like(asked[-2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, scores, all_scores, ctx.index, ctx.rule, progress, mask, learned = inputs
    ctx.save_for_backward(weight, scores, progress, mask, learned, *output[1:], *all_scores)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, g: Tensor | None, *of_others: Tensor | None) -> tuple[Any, ...]:
    weight, scores, progress, mask, learned, positive, alpha, *all_scores = ctx.saved_tensors
    gradients = [None, None, [None] * len(all_scores), None, None, None, None, None]
    if g is not None:
        asked = weight, scores, all_scores, ctx.index, ctx.rule, progress
        trained = 1 if method_of(ctx.rule)[0].trains == "scores" else 0
        gradients[trained] = binary_weight_backward(*asked, mask, positive, alpha, g)
        if learned is not None:
            gradients[-1] = learned_scale_backward(*asked, mask, positive, learned, g)
    return tuple(gradients)


binary_weight.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("mpt_bihalf::global_masks", mutates_args=(), schema="(Tensor[] scores, str rule) -> Tensor[]")
def global_masks(scores: Sequence[Tensor], rule: str) -> list[Tensor]:
    """`masks.global_score_masks` as bool, at the pruning rate of the rule."""
    return [mask.clone() for mask in masks_together(scores, method_of(rule)[1])]


@global_masks.register_fake
def _(scores: Sequence[Tensor], rule: str) -> list[Tensor]:
    return [torch.empty(s.shape, dtype=torch.bool, device=s.device) for s in scores]


def layout(weight: Tensor) -> torch.memory_format:
    """The memory format that what is made of a weight takes from it."""
    channels_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not weight.is_contiguous() else torch.contiguous_format

"""Put a method on the weights of any `nn.Module`, and read the binary weights back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .activations import BinaryActivation
from .affine import affine_parameters
from .binarizable import check_use, layers_of, layers_to_binarize
from .binary_inputs import layers_with_binary_input
from .counts import Number, fraction_within
from .filters import filters
from .gradients import LATENT_GRADIENTS, SCORE_GRADIENTS, Gradient
from .initialise import INITS, draw_latent, draw_scores
from .masks import SCOPES, MaskRule, check_places, edge_popup, refuse_empty
from .methods import Method, find_method
from .output_scale import put_on_output, take_scales_off
from .parametrization import BinaryWeight, binary_layers, binary_parts, one_pass, refuse_nan, refuse_sharded
from .ranking import GlobalRanking
from .real_valued import warn_of_real_matrices
from .rotation import Rotation
from .scale_modules import output_scales, scaled_elsewhere
from .scales import SCALES, Learned, Scale, scale_of
from .transport import check_rankable
from .usage import usage

SCALE_ON = ("output", "weight")
Model = TypeVar("Model", bound=nn.Module)
Part = TypeVar("Part")


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
    scale_on: str = "output",
    latent_gradient: str | Gradient | None = None,
    score_gradient: str | Gradient | None = None,
    train_affine: bool = False,
    learn_mask: bool = True,
    allow_empty: bool = False,
    example: Any = None,
) -> Model:
    """Put a method on every convolution and linear weight of `model`, in place, and return the model.

    That is the weight of each `Conv1d`, `Conv2d`, `Conv3d` and `Linear`; parameters that belong to no such layer (the
    `in_proj_weight` of attention, say) stay as they are, and so do transposed convolutions. Where such matrices make up
    1 % of all parameters or more, a warning names them and their share. Layers that change their weight before they use
    it (weight standardisation, say) are refused: what is in use would not be binary.

    method: a name in `METHODS` or a `Method` of your own.
    prune_rate: fraction *pruned*, in [0, 1), for methods with a mask. (The reference MPT code uses a flag of that name
        for the fraction kept.)
    p_pos: prior of +1, in [0, 1], for methods that set the bit ratio; 1/2 is bi-half.
    scope: `layer`, `filter` or `global`: what the scores are ranked within, for the methods where that is open.
    skip: layers to leave as they are, by name (as in `model.named_modules()`) or by rule: `first` (the convolution and
        linear layers that the input comes to before any other), `last` (those after which no other comes, so each of
        two heads), `downsample` (a residual network's shortcut convolutions), `none`. Without an example the first and
        the last are those that were made first and last, and a warning names them.
    init: how latent weights begin: `kaiming_normal` (fan-in, gain sqrt(2), the fan being the connections kept),
        `signed_constant` (that standard deviation times the sign of a draw), `equal_bits` (in each filter w and -w for
        each draw w, so that sign, irnet and bihalf all begin with the same signs, half of them +1), or `keep` those
        there. Scores always begin Kaiming uniform with a = sqrt(5).
    seed: of the draws; None draws from torch's global generator. A seed gives the same values on every device, and
        under every default dtype.
    scale, latent_gradient, score_gradient: other parts than the method's own, by name or as a function. Where a
        `ScaledOutput` has one behind the layer, that is learned in the place of one of the weight, which is `kaiming`.
    scale_on: `output`: a layer that a `BinaryActivation` feeds gives alpha conv(s, B) + bias, of which conv(s, B) is a
        whole number; `weight`: it gives conv(s, alpha B) + bias, the same but for rounding noise where sums cancel.
        Between the two may stand flattening, identities and pooling. Other layers have the scale on their weight in any
        case: of other inputs, used without being called, with a forward pass of their own, or under a scale of your
        own that is neither one for the layer nor one for each filter. `layer.weight` reads alpha B either way. A state
        dictionary of before, or made under `weight`, goes on with that.
    train_affine: under the frozen-weight methods, train biases and the affine parameters of norms too ('+BN').
        By default those are frozen, of torch's norms and of modules whose class has `norm` in its name, and so is what
        is called `gain`; the layers in `skip` stay as they are, trainable.
    learn_mask: False freezes the scores as they were drawn: a random mask of the same count, the control for what
        learning the mask brings.
    allow_empty: let layers be of which the mask would keep nothing, whose output is a constant. By default an error.
    example: an input of the model, as a tensor, a tuple of positional or a dictionary of keyword arguments. Its shapes
        and dtypes matter, so it may lie on the meta device where the model can be run there. A copy of the model is run
        on it once, in evaluation mode, to see which weights are used, how, and in what order.

    What the method trains is trainable afterwards, W or the scores, whatever it was before.

    Layers that hold one weight get one mask and one set of scores, and go on holding it. To give W other values
    afterwards, assign to `layer.weight`, or write to `layer.parametrizations.weight.original`: `layer.weight` itself is
    worked out anew each time it is read, so what `torch.nn.init` writes into it is lost.

    Raises ValueError for anything unknown or out of range, for a layer of which nothing would be kept, for a weight
    that something else than these layers holds too, and for a sharded model; then the model is as it was.

    >>> model = binarize_weights(torchvision.models.resnet18(num_classes=10), "mpt-bihalf", prune_rate=0.5,
    ...                          skip=("first", "last", "downsample"))
    """
    refuse_sharded(model)
    method = _with_parts(find_method(method), scale, latent_gradient, score_gradient)
    kept = 1 - fraction_within(prune_rate, "prune_rate", below_one=True)
    fraction_within(p_pos, "p_pos")
    _check_known(scope=(scope, SCOPES), init=(init, INITS), scale_on=(scale_on, SCALE_ON))
    use = None if example is None else usage(model, layers_of(model), example)
    layers = layers_to_binarize(model, skip, use)
    weights: dict[int, nn.Parameter] = {id(layer.weight): layer.weight for layer in layers.values()}
    if init == "keep":
        for name, layer in layers.items():
            check_rankable(layer.weight, f"the weight of layer {name!r}")
    together = scope == "global" and method.mask is edge_popup
    if together:
        check_places([weight.numel() for weight in weights.values()], prune_rate)
    if not allow_empty and method.mask is not None:
        refuse_empty({name: (method.mask, layer.weight, scope) for name, layer in layers.items()}, prune_rate)
    if method.binarizer is not None:
        check_use(layers, use)
        warn_of_real_matrices(model)
    to_output = scale_on == "output" and method.binarizer is not None
    fed = layers_with_binary_input(model, layers, use) if to_output else set()

    take_scales_off(model, layers)  # of a model that was baked
    generator = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
    for weight in weights.values():
        _begin(weight, method, init, 1.0 if method.mask is None else float(kept), generator)
    if method.binarizer is None:
        return model
    elsewhere = scaled_elsewhere(model) if isinstance(method.scale, Learned) else set()
    alone = replace(method, scale=SCALES["kaiming"]) if elsewhere else method
    methods = {name: alone if layer in elsewhere else method for name, layer in layers.items()}
    parts = _put_on(layers, methods, prune_rate, p_pos, scope)
    for part in parts.values():
        if part.scores is not None:
            draw_scores(part.scores, generator)
            part.scores.requires_grad_(learn_mask)
        if isinstance(part.before, Rotation):
            part.before.draw(generator)
    for name, part, latent in binary_parts(model):
        if name in fed and _one_a_filter(part, latent):
            put_on_output(layers[name], part)
    if together:
        _rank_together(model, parts)
    with one_pass(model):
        for _, part, latent in binary_layers(model):
            part.begin_scale(latent)
    if method.trains == "scores" and not train_affine:
        _freeze(affine_parameters(model, layers.values()), [part for _, part, _ in binary_layers(model)])
    return model


def _check_known(**choices: tuple[str, Iterable[str]]) -> None:
    for name, (choice, known) in choices.items():
        if choice not in known:
            raise ValueError(f"unknown {name} {choice!r}; known: {', '.join(known)}")


def _begin(weight: nn.Parameter, method: Method, init: str, kept: float, generator: torch.Generator) -> None:
    """Draw W unless those there are kept, and say whether it is trained."""
    if init != "keep":
        draw_latent(weight, kept, init, generator)
    weight.requires_grad_(method.trains != "scores")
    if method.trains == "signs":
        with torch.no_grad():
            weight.copy_(torch.where(weight >= 0, 1, -1))


def _put_on(layers: Mapping[str, Any], methods: Mapping[str, Method], *settings: Any) -> dict[int, BinaryWeight]:
    """Parametrize the layers; the part of each weight, that of the first layer where several share one, by its id."""
    parts: dict[int, BinaryWeight] = {}
    for name, layer in layers.items():
        part, weight = BinaryWeight(layer.weight, methods[name], *settings), layer.weight
        first = parts.setdefault(id(weight), part)
        if first is not part:
            part.scores, part.alpha, part.shares_scores = first.scores, first.alpha, True
            if part.before is not None and first.before is not None:  # the tensors, as a module of two is lent wrongly
                part.before._parameters.update(first.before._parameters)
                part.before._buffers.update(first.before._buffers)
        # unsafe: shape and dtype are right by construction, and layers that are ranked together need all scores.
        parametrize.register_parametrization(layer, "weight", part, unsafe=True)
    return parts


def _one_a_filter(part: BinaryWeight, weight: Tensor) -> bool:
    """Whether the scale is one for the layer, or one for each filter, so that it can be taken out of a sum."""
    layer = part.layer(weight, part.scores, part.alpha)
    every = torch.ones_like(layer.weight, dtype=torch.bool)
    alpha = scale_of(part.method.scale, layer, every, every)
    return alpha.numel() == 1 or alpha.shape == (len(weight), *[1] * (weight.dim() - 1))


def _rank_together(model: nn.Module, parts: Mapping[int, BinaryWeight]) -> None:
    """Rank the scores of these weights, by id, together, once in each pass through the model."""
    ranking, together = GlobalRanking(), [*parts.values()]
    places = {weight: index for index, weight in enumerate(parts)}
    for _, part, weight in binary_parts(model):
        part.ranking, part.together, part.index = ranking, together, places[id(weight)]
    model.register_forward_pre_hook(ranking.begin)
    model.register_forward_hook(ranking.end, always_call=True)


def _freeze(affine: Iterable[nn.Parameter], parts: Sequence[BinaryWeight]) -> None:
    """Stop training these parameters beside those parts, which note that, and which were frozen before."""
    for parameter in affine:
        if not parameter.requires_grad:
            parts[0].frozen_before.append(parameter)
        parameter.requires_grad_(False)
    for part in parts:
        part.freezes_affine = True


def learned_scales(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are learned scales: of layers [F, 1, ...], and of modules behind layers (`ScaledOutput`).

    Weight decay is not for them: it would pull what is there to be any size towards 0. The gradient of a layer's is the
    sum over the D connections of a filter: under SGD it takes 2 / D of the rate of the other parameters
    (`scale_groups`).
    """
    of_layers = [part.alpha for _, part, _ in binary_layers(model) if part.alpha is not None]
    return [*of_layers, *output_scales(model)]


def scale_groups(model: nn.Module, adaptive: bool = False) -> list[dict[str, Any]]:
    """The learned scales in groups for an optimizer: without weight decay, each group with its `lr_scale`.

    lr_scale: what the learning rate is to be multiplied by. Of a layer's scale it is 2 / D, so that a step moves the
    weights in use along their signs about as far as weights that are trained themselves would go; 1 for modules behind
    layers, which begin at 1, and for all of an optimizer that is adaptive, as Adam is.
    """
    by_size: dict[float, list[nn.Parameter]] = {}
    for _, part, weight in binary_layers(model):
        if part.alpha is not None:
            by_size.setdefault(1.0 if adaptive else 2 / max(1, weight[0].numel()), []).append(part.alpha)
    for scale in output_scales(model):
        by_size.setdefault(1.0, []).append(scale)
    return [{"params": scales, "weight_decay": 0.0, "lr_scale": factor} for factor, scales in by_size.items()]


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell what is binary how far the training is: epoch / epochs, in [0, 1) (EDE's schedule follows it)."""
    for module in model.modules():
        if isinstance(module, BinaryWeight | BinaryActivation):
            module.progress = progress


def set_prune_rate(model: nn.Module, prune_rate: Number) -> None:
    """Prune this fraction of the masked layers from now on.

    prune_rate: in [0, 1). Raises ValueError, and changes nothing, for any other, and where a layer would keep nothing.
    """
    fraction_within(prune_rate, "prune_rate", below_one=True)
    check_kept(model, prune_rate)
    for _, part, _ in binary_parts(model):
        part.set_prune_rate(prune_rate)


def check_kept(model: nn.Module, prune_rate: Number | None = None) -> None:
    """Raise ValueError where a layer of a binarized model keeps no weight, at this rate or at that in force."""
    masked = ((name, part, weight) for name, part, weight in binary_layers(model) if part.method.mask is not None)
    parts = {name: (part, weight) for name, part, weight in masked if part.fixed_mask is None}
    for first in (part for part, _ in parts.values() if part.together and part.index == 0):
        rate = first.prune_rate if prune_rate is None else prune_rate
        check_places([part.scores.numel() for part in first.together if part.scores is not None], rate)
    at: dict[Number, dict[str, tuple[MaskRule, Tensor, str]]] = {}
    for name, (part, weight) in parts.items():
        assert part.method.mask is not None
        of_rate = at.setdefault(part.prune_rate if prune_rate is None else prune_rate, {})
        of_rate[name] = part.method.mask, weight, part.scope
    for rate, layers in at.items():
        refuse_empty(layers, rate)


def forget(model: nn.Module) -> None:
    """Let the next pass see what was written to frozen weights.

    Call it on an accelerator after a write that torch does not note there: by a collective
    (`torch.distributed.broadcast(p, 0)`), through `.data`, by another library. On the CPU the next pass sees all writes
    by itself. What was kept of them from pass to pass, signs say, is worked out anew.
    """
    for _, part, _ in binary_parts(model):
        part.forget()


@torch.no_grad()
def shuffle_scores(model: nn.Module, seed: int) -> None:
    """Permute the scores of each layer at random, in place: a mask of the same counts that knows no place.

    Within the filters where the mask rule ranks within filters, so that each keeps as many as before. The control for
    what a finished mask owes to where its weights are, beyond how many each layer keeps. Raises ValueError for a
    sharded model.
    """
    refuse_sharded(model)
    generator = torch.Generator().manual_seed(seed)
    for _, part, weight in binary_layers(model):
        if part.scores is not None:
            whole = part.method.scoped and part.scope != "filter"
            rows = part.scores.reshape(1, -1) if whole else filters(part.scores)
            order = torch.rand(rows.shape, generator=generator, dtype=torch.float32).argsort(1).to(rows.device)
            part.scores.copy_(rows.gather(1, order).view(weight.shape))


def binary_weights(model: nn.Module) -> dict[str, Tensor]:
    """B of each binarized layer by name: -1, 0 (pruned), +1 in the shape and dtype of its weight.

    Raises ValueError, naming the layer, for a NaN in latent weights or scores, and for a sharded model.
    """
    refuse_nan(model)
    forget(model)
    with one_pass(model):
        return {name: part.binary(weight) for name, part, weight in binary_layers(model)}


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

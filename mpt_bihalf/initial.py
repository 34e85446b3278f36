"""Masks that are fixed before training: random, by magnitude, SNIP, GraSP, SynFlow, and those of one's own."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from .activation_modules import SampleStandard, SignTerms
from .activations import BinaryActivation
from .bake import plain_copy
from .binarizable import layers_of
from .counts import Number, fraction_within, kept_count
from .filters import filters
from .given_masks import fix_masks
from .initial_scores import Scores, Untrained
from .masks import SCOPES, InitialMask, find_initial_mask
from .parametrization import binary_layers
from .selection import largest
from .transport import check_rankable

Batches = Iterable[tuple[Tensor, Tensor]]


class EmptyLayers(UserWarning):
    """A mask keeps nothing of a layer, whose output is then a constant."""


def initial_masks(
    model: nn.Module,
    rule: str | InitialMask,
    prune_rate: Number,
    batches: Batches = (),
    scope: str = "global",
    seed: int = 0,
    layers: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """The masks of a network by scores that are taken once, before it is trained; for `fix_masks`.

    model: binarized, under any method, or plain. It stays as it is, and what is scored is the unpruned network: masks
        that it has do not count.
    rule: `random`, `magnitude`, `snip`, `grasp`, `synflow`, or an `InitialMask` of your own, in `MASKS` or not.
    prune_rate: fraction pruned, in [0, 1), read as written.
    batches: images and classes on the model's device, standardised, the same each time they are gone through: a list,
        say. `snip` and `grasp` need some, 10 and 25 of each class in their papers; several batches are scored one after
        another, and only batch norm can tell. Of them `synflow` takes the images' shape alone.
    scope: what is ranked together: `global` (all layers), `layer` or `filter`.
    seed: of what the rule draws, as `random` does.
    layers: the names of those to mask. By default the binarized ones, or, where there are none, all convolution and
        linear layers.

    Returns bool in the shape of the weight by the layer's name, True = kept. Of the N weights ranked together exactly
    N - round_half_up(prune_rate * N) are kept, of equal scores those of the later layer or the higher index. Under the
    scope `global` a layer can lose all its weights, as it can in the published codes; a warning, `EmptyLayers`, names
    it.

    Raises ValueError for an unknown rule or scope, a rate outside [0, 1), layers that are none of the model, no images
    for a rule that looks at some, or an iterator of them, scores that are NaN, a loss that no weight bears on,
    weights of one size where these are scored, `grasp` with binary activations, and `synflow` for a network that
    positive weights do not make linear.
    """
    rule = find_initial_mask(rule)
    if isinstance(batches, Iterator):
        raise ValueError("batches are gone through more than once: give a list of them, not an iterator")
    fraction_within(prune_rate, "prune_rate", below_one=True)
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; known: {', '.join(SCOPES)}")
    network = _untrained(model, batches, seed, layers)
    for step in range(1, rule.rounds + 1):
        pruned = 1 - float(1 - fraction_within(prune_rate, "prune_rate")) ** (step / rule.rounds)
        scores = _checked(rule, network)
        network.kept = best_of(scores, network.kept, prune_rate if step == rule.rounds else pruned, scope)
    if told := empty_layers(network.kept):
        warnings.warn(told, EmptyLayers, stacklevel=2)
    return dict(network.kept)


def empty_layers(masks: Mapping[str, Tensor]) -> str:
    """A line that names the layers of which these masks keep nothing, the first three; empty where there are none."""
    empty = [name for name, mask in masks.items() if not mask.is_meta and not mask.any()]
    more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
    named = f"{', '.join(map(repr, empty[:3]))}{more}"
    return f"the mask keeps nothing of {'layers' if len(empty) > 1 else 'layer'} {named}" if empty else ""


def _untrained(model: nn.Module, batches: Batches, seed: int, layers: Iterable[str] | None) -> Untrained:
    binarized = {name: part.latent(weight).detach() for name, part, weight in binary_layers(model)}
    known = layers_of(model)
    if isinstance(layers, str):
        raise ValueError(f"layers must be a list of names, not {layers!r}")
    names = [*layers] if layers is not None else [*binarized] or [*known]
    if not names:
        raise ValueError("there is no layer to mask")
    for name in names:
        if name not in known:
            raise ValueError(f"there is no layer {name!r} to mask in the model; it has: {', '.join(known)}")
    whole = deepcopy(model)
    every = {
        name: torch.ones_like(known[name].weight, dtype=torch.bool) for name in {**dict.fromkeys(names), **binarized}
    }
    fix_masks(whole, every, allow_empty=True)
    plain, _ = plain_copy(whole)
    weights: dict[str, nn.Parameter] = {}
    for name in names:  # each weight once, though layers may share it
        weight = cast(nn.Parameter, plain.get_submodule(name).weight)
        if not any(weight is other for other in weights.values()):
            weight.requires_grad_()
            weights[name] = weight
    drawn = {name: binarized.get(name, weight.detach()) for name, weight in weights.items()}
    binary = BinaryActivation | SignTerms | SampleStandard
    signs = [name for name, module in plain.named_modules() if isinstance(module, binary)]
    digest = hashlib.sha256(f"initial mask {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return Untrained(plain, weights, drawn, batches, {name: every[name] for name in weights}, signs, generator)


def _checked(rule: InitialMask, network: Untrained) -> Scores:
    with torch.enable_grad():
        scores = rule.scores(network)
    of = rule.name
    if not isinstance(scores, Mapping):
        raise ValueError(f"{of} gives {type(scores).__name__}, and is to give a dictionary of scores by layer")
    for name, weight in network.weights.items():
        given = scores.get(name)
        if not isinstance(given, Tensor) or given.shape != weight.shape or not given.is_floating_point():
            raise ValueError(f"{of} gives no scores of layer {name!r}: they are to be float {[*weight.shape]}")
        if given.device != weight.device:
            raise ValueError(
                f"{of} gives scores of layer {name!r} on {given.device}, and its weight is on {weight.device}"
            )
        check_rankable(given, f"the scores of layer {name!r} by {of}")
    return {name: scores[name].detach() for name in network.weights}


def best_of(scores: Scores, kept: Mapping[str, Tensor], prune_rate: Number, scope: str) -> dict[str, Tensor]:
    """The masks of the best-scored among those kept so far."""
    if scope == "global":
        rows, among = (torch.cat([t.reshape(1, -1) for t in of.values()], dim=1) for of in (scores, kept))
        chosen = _largest(rows, among, prune_rate).split([s.numel() for s in scores.values()], dim=1)
        return {name: mask.view(s.shape) for (name, s), mask in zip(scores.items(), chosen, strict=True)}
    chosen = {}
    for name, s in scores.items():
        of_filters, of_layer = (filters(s), filters(kept[name])), (s.reshape(1, -1), kept[name].reshape(1, -1))
        chosen[name] = _largest(*(of_filters if scope == "filter" else of_layer), prune_rate).view(s.shape)
    return chosen


def _largest(rows: Tensor, among: Tensor, prune_rate: Number) -> Tensor:
    return among & largest(rows.contiguous(), kept_count(rows.shape[1], prune_rate), among=among.contiguous())

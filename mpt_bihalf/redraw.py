"""Pruned weights that are drawn anew, or take the values of others, while the scores over them are trained."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from . import binarizers
from .counts import fraction_within
from .derived import Derived
from .filters import filters
from .initialise import INITS, draw_latent
from .parametrization import BinaryWeight, binary_layers, one_pass, refuse_sharded
from .transport import transported

# How often a rule is followed and for which share of the weights, in the published codes: iterand counts steps, recycle
# epochs.
EVERY = {"iterand": 300, "recycle": 10}
SHARE = {"iterand": 0.1, "recycle": 0.2}
# Signs that a weight has by itself, or by the kept weights alone: what happens to pruned ones cannot turn them.
OF_THE_KEPT = (binarizers.sign, transported)


class Redraw:
    """Gives pruned weights of frozen layers other values, before some steps; the outputs of the step stay the same.

    rule: `iterand` (Chijiwa et al. 2021): before every step t, counted from 0, with (t + 1) mod `every` = 0 each pruned
        weight is drawn again from the initial distribution with probability `share`. Where signs are those of whole
        filters (mpt-balanced) the chosen weights of a filter are permuted instead, so that no kept sign turns, and only
        those are chosen whose abs(S) lies below all that are kept in it, so that a new sign does not let them in.
        `recycle` (Gorbett & Whitley 2023): before every `every`-th epoch but the first, in each layer, the W of the
        int(share * N) lowest abs(S), as far as they are pruned, become those of the highest, rank by rank. Not for
        mpt-balanced: copied values change the signs of its filters.
    every: steps, or epochs; 0: 300 steps, or 10 epochs. share: in (0, 1]; 0: 0.1, or 0.2.
    seed, init: of the draws, all of them made on the host; init as that of `binarize_weights`.
    epoch_steps: how many steps an epoch has, for recycle.

    Scores, their momenta and kept weights stay. What is drawn at a step follows from the seed and the step alone.

    Raises ValueError for anything unknown or out of range, a sharded model, one without trained scores, and methods
    whose kept signs hang on pruned weights otherwise.

    >>> redraw = Redraw(model, "iterand", seed=0)
    >>> redraw.before_step(step)
    >>> F.cross_entropy(model(x), y).backward(); optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        rule: str = "iterand",
        every: int = 0,
        share: float = 0.0,
        seed: int = 0,
        init: str = "kaiming_normal",
        epoch_steps: int = 0,
    ) -> None:
        if rule not in EVERY:
            raise ValueError(f"unknown redraw {rule!r}; known: {', '.join(EVERY)}")
        if type(every) is not int or every < 0:
            raise ValueError(f"redraw_every must be a whole number of at least 0, not {every}")
        fraction_within(share, "redraw_share")
        if init not in INITS[:-1]:
            raise ValueError(f"unknown init {init!r}; known: {', '.join(INITS[:-1])}")
        if rule == "recycle" and epoch_steps < 1:
            raise ValueError("recycle counts epochs: say epoch_steps, how many steps one has")
        refuse_sharded(model)
        self.rule, self.every, self.share = rule, every or EVERY[rule], share or SHARE[rule]
        self.period = self.every * (epoch_steps if rule == "recycle" else 1)
        self._model, self._seed, self._init = model, seed, init
        self._layers = [(name, part, w) for name, part, w in binary_layers(model) if part.scores is not None]
        if not any(part.scores is not None and part.scores.requires_grad for _, part, _ in self._layers):
            raise ValueError("no layer has scores that are trained: only beside these pruned weights ever matter")
        for _, part, _ in self._layers:
            check_redraw(rule, part.method.name, part.method.binarizer)

    def falls_on(self, step: int) -> bool:
        """Whether weights change before this step, counted from 0."""
        return (step + 1) % self.period == 0 if self.rule == "iterand" else step > 0 and step % self.period == 0

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Change what is to be changed before this step, in place; without waiting for the device."""
        if not self.falls_on(step):
            return
        with one_pass(self._model):
            masks = [part.method.kept(part.layer(weight, part.scores, None)) for _, part, weight in self._layers]
        for (name, part, weight), mask in zip(self._layers, masks, strict=True):
            assert mask is not None
            if self.rule == "recycle":
                assert part.scores is not None
                weight.copy_(_recycled(weight, part.scores, mask, self.share))
            else:
                weight.copy_(self._drawn(name, part, weight, ~mask, step))

    def _drawn(self, name: str, part: BinaryWeight, weight: Tensor, pruned: Tensor, step: int) -> Tensor:
        digest = hashlib.sha256(f"{self._seed} iterand {step} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        draw = torch.rand(weight.shape, generator=generator, dtype=torch.float32)
        chosen = pruned & (draw < self.share).to(weight.device)
        if part.method.binarizer in OF_THE_KEPT:
            drawn = torch.empty(weight.shape, dtype=torch.float32)
            draw_latent(drawn, float(1 - fraction_within(part.given_prune_rate, "prune_rate")), self._init, generator)
            return torch.where(chosen, drawn.to(weight.device, weight.dtype), weight)
        assert part.scores is not None
        lowest = torch.where(filters(~pruned), filters(part.scores.abs()), torch.inf).amin(1, keepdim=True)
        below = (filters(part.scores.abs()) < lowest).view(weight.shape)
        return _permuted(part, weight, chosen & below, draw.to(weight.device))


def check_redraw(rule: str, name: str, binarizer: object) -> None:
    """Raise ValueError where under a method of this name and binarizer kept signs would turn."""
    if rule == "recycle" and binarizer not in OF_THE_KEPT:
        raise ValueError(f"recycle copies weights, and the signs of {name} are those of whole filters: take iterand")
    if binarizer not in (*OF_THE_KEPT, binarizers.fixed):
        raise ValueError(
            f"it is not known of the signs of {name} that pruned weights cannot turn them: leave redraw out"
        )


def _permuted(part: BinaryWeight, weight: Tensor, chosen: Tensor, draw: Tensor) -> Tensor:
    """W with the chosen weights of each filter in another order; as it is in filters in which a kept sign would turn.

    By the multiset of a filter no sign can turn, but where equal weights lie on both sides of its cut-off.
    """
    rows, among, order = filters(weight), filters(chosen), filters(draw)
    to = (~among).byte().argsort(dim=1, stable=True)  # the chosen in order, then the others
    of = torch.where(among, order, 2).argsort(dim=1, stable=True)
    moved = rows.scatter(1, to, rows.gather(1, of)).view(weight.shape)
    signs = [Derived(w, part.prune_rate, part.p_pos, part.selections).top_of_all for w in (weight, moved)]
    turned = filters((signs[0] != signs[1]) & ~chosen).any(1).view(-1, *[1] * (weight.dim() - 1))
    return torch.where(turned, weight, moved)


def _recycled(weight: Tensor, scores: Tensor, mask: Tensor, share: float) -> Tensor:
    """W with the values of the best-scored in the places of the worst-scored that are pruned, rank by rank."""
    count = int(share * weight.numel())
    if not count:
        return weight
    size = scores.abs().flatten()
    lowest = torch.where(mask.flatten(), torch.inf, size).argsort(stable=True)[:count]
    can = ~mask.flatten()[lowest]  # which come first
    from_top = weight.numel() - can.sum() + torch.arange(count, device=weight.device)
    highest = size.argsort(stable=True)[from_top.clamp(max=weight.numel() - 1)]
    flat = weight.flatten()
    return flat.scatter(0, lowest, torch.where(can, flat[highest], flat[lowest])).view(weight.shape)

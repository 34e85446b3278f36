"""A method as a parametrization (`torch.nn.utils.parametrize`): latent weight in, binary weight out.

No layer class is rewritten, and `state_dict`, `deepcopy` and `to` go on working. The latent weight W stays where torch
keeps it, `layer.parametrizations.weight.original`; the scores, if any, are `layer.parametrizations.weight[0].scores`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import kernels
from .counts import Number
from .devices import autocast
from .latent import Latent
from .masks import GlobalRanking
from .methods import Method
from .scales import scale_of
from .spare import Spare


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


def binary_layers(model: nn.Module) -> Iterator[tuple[str, BinaryWeight, Tensor]]:
    """The name, the parametrization and the latent weight of each binarized layer, in the model's order."""
    for name, module in model.named_modules():
        for part in _parametrizations(module):
            if isinstance(part, BinaryWeight):
                yield name, part, cast(Tensor, cast(Any, module).parametrizations.weight.original)


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


def refuse_nan(model: nn.Module) -> None:
    """Raise ValueError, naming the layer, for a NaN in latent weights or scores."""
    layer = find_nan(model)
    if layer is not None:
        raise ValueError(f"layer {layer!r} has NaN in its latent weights or scores")


def _parametrizations(module: nn.Module) -> Sequence[nn.Module]:
    return module.parametrizations.weight if parametrize.is_parametrized(module, "weight") else ()  # type: ignore


def is_binarized(module: nn.Module) -> bool:
    return any(isinstance(part, BinaryWeight) for part in _parametrizations(module))

"""What a training step has beside loss and optimizer: a penalty before it, and what is done to latent weights after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .methods import Method
from .parametrization import BinaryWeight, binary_layers, binary_parts

PENALTY_LAMBDA = 1e-6


class StepRules:
    """The rules of a model's method, and those asked for, over all its binarized layers that train latent weights.

    penalty_lambda: what the method's penalty is multiplied by, at least 0. centre: after each step W <- W - mean_c W,
    its mean over input channels at each position of the kernel (XNOR-Net's code). clip_weights: after each step, and
    after that, W <- clip(W, -1, 1) (BinaryConnect, Courbariaux et al. 2015); so it is under a method that does so.
    epoch_steps: how many steps an epoch has, for methods that do something before each (RBNN turns its rotations); 0:
    they never do.

    Raises ValueError where a rule is asked for that no layer of the model can follow.

    >>> rules = StepRules(model, clip_weights=True, epoch_steps=len(loader))
    >>> rules.before_step(step)
    >>> loss = F.cross_entropy(model(x), y) + rules.penalty()
    >>> loss.backward(); optimizer.step(); rules.after_step()
    """

    def __init__(
        self,
        model: nn.Module,
        penalty_lambda: float = PENALTY_LAMBDA,
        centre: bool = False,
        clip_weights: bool = False,
        epoch_steps: int = 0,
    ) -> None:
        if not 0 <= penalty_lambda < float("inf"):
            raise ValueError(f"penalty_lambda must be a finite number of at least 0, not {penalty_lambda}")
        layers = [(part, weight) for _, part, weight in binary_layers(model) if part.method.trains == "weights"]
        if not layers and (centre or clip_weights):
            raise ValueError("no layer has latent weights that are trained, for centre and clip_weights to change")
        self.penalty_lambda, self.centre, self.clip_weights = penalty_lambda, centre, clip_weights
        self.epoch_steps = epoch_steps
        self._layers = layers
        self._parts = [(part, weight) for _, part, weight in binary_parts(model) if part.method.trains == "weights"]
        self._penalised = [(part, weight) for part, weight in layers if part.method.penalty is not None]

    def penalty(self) -> Tensor | float:
        """penalty_lambda times the sum over all layers of the method's penalty, to add to the loss once a step.

        0-dim, with gradients to latent weights and learned scales; 0.0 where the method has none.
        """
        total: Tensor | float = 0.0
        for part, weight in self._penalised:
            total = total + _penalty(part, weight)
        return self.penalty_lambda * total if self._penalised else 0.0

    @torch.no_grad()
    def after_step(self) -> None:
        """Change the latent weights as the rules say, in place."""
        for part, weight in self._layers:
            if self.centre:
                weight.sub_(weight.mean(1, keepdim=True))
            if self.clip_weights or part.method.clip_weights:
                weight.clamp_(-1, 1)

    def before_step(self, step: int) -> None:
        """What is done before this step, counted from 0 over all epochs: rotations, before the first of an epoch."""
        if self.epoch_steps and step % self.epoch_steps == 0:
            done: set[int] = set()
            for part, weight in self._parts:
                # Layers of one weight share these tensors, until a move to another dtype or device gives each its own.
                shared = {id(buffer) for buffer in part.before.buffers()} if part.before is not None else set()
                begin_epoch = getattr(part.before, "begin_epoch", None)
                if begin_epoch is not None and not (shared and shared <= done):
                    begin_epoch(weight)
                done |= shared


def _penalty(part: BinaryWeight, weight: Tensor) -> Tensor:
    method: Method = part.method
    assert method.penalty is not None
    layer = part.layer(part.latent(weight), None, part.alpha)
    if part.alpha is not None:
        return method.penalty(weight, part.alpha.abs(), method.kept(layer, part.fixed_mask))
    with torch.no_grad():
        mask, _, alpha = method.decide(layer, part.fixed_mask)
    return method.penalty(weight, alpha, mask)

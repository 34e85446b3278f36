"""A method as a parametrization (`torch.nn.utils.parametrize`): latent weight in, binary weight out.

No layer class is rewritten, and `state_dict`, `deepcopy` and `to` go on working. The latent weight W stays where torch
keeps it, `layer.parametrizations.weight.original`; the scores, if any, are `layer.parametrizations.weight[0].scores`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import kernels, operators
from .counts import Number, as_fraction
from .derived import FrozenWeight, Selections
from .devices import HOST, autocast
from .gradients import of_learned_scale
from .layer import Layer
from .methods import Method
from .operators import rule_of
from .provenance import EXTRA_STATE, Provenance
from .ranking import GlobalRanking
from .scales import Learned
from .selection import Selection
from .sharded import REMEDY, refuse_part

SCORES_APART = "the state dictionary is of a time when layers of one weight had scores of their own: bake it there"


class BinaryWeight(nn.Module):
    """The parametrization: latent weight in, alpha * B out (`binary` gives B itself).

    Layers that share one weight have one of these each, which share the scores.

    scores: trained float tensor in the shape of the weight under the frozen-weight methods, else None.
    alpha: trained float tensor [F, 1, ...] under a scale that is learned (`scales.Learned`), whose a it is; else None.
    before: the method's module for the latent weight, what it gives being binarized in its place; else None.
    fixed_mask: bool in that shape, what is kept in the place of what the method would keep (`fix_masks`), else None.
    prune_rate: the one in force; given_prune_rate: that of `binarize_weights`.
    progress: how far the training is (`set_progress`), for gradients with a schedule.
    together: those of the layers that are ranked together, of which this is the `index`-th; none under other scopes.
    scale_on: `weight`, or `output` where alpha multiplies what the layer gives with B (`output_scale`); the weight in
    use reads alpha * B either way. has_binary_input: whether a binary activation feeds the layer, so that it may be.

    compute: `dense` or `sparse`, how the layer computes (`compute.set_compute`).

    What it keeps from pass to pass, to save time: `selections`, `frozen`, `ranking` (see `layer.Layer`).
    """

    scores: nn.Parameter | None
    alpha: nn.Parameter | None
    fixed_mask: Tensor | None

    def __init__(self, weight: Tensor, method: Method, prune_rate: Number, p_pos: Number, scope: str) -> None:
        super().__init__()
        self.method = method
        self.prune_rate, self.given_prune_rate, self.p_pos, self.scope = prune_rate, prune_rate, p_pos, scope
        self.together: Sequence[BinaryWeight] = ()
        self.index = 0
        self.scale_on, self.has_binary_input = "weight", False
        self.compute = "dense"
        self.shares_scores = False  # with the part of a layer before
        self.freezes_affine = False  # whether biases and norms were frozen with W
        self.frozen_before: list[nn.Parameter] = []  # which biases and norms the user had frozen before
        # Not by torch.zeros_like, which imports sympy for a weight without memory.
        self.register_parameter("scores", nn.Parameter(weight.detach().clone().zero_()) if self._frozen else None)
        learned = isinstance(method.scale, Learned)
        of_filters = weight.detach().flatten(1)[:, :1].clone().view(-1, *[1] * (weight.dim() - 1)) if learned else None
        self.register_parameter("alpha", None if of_filters is None else nn.Parameter(of_filters))
        self.before = None if method.before is None else method.before(weight.detach())
        self.register_buffer("fixed_mask", None)
        self.selections: Selections = defaultdict(Selection)
        self.frozen, self.ranking = FrozenWeight(), GlobalRanking()
        self._shape = weight.shape
        self._rule = rule_of(method, prune_rate, p_pos, scope)
        # Of a graph a tensor is an input, a number a constant, for each of which it would be compiled anew.
        self._progress = torch.zeros((), dtype=torch.float64, device=HOST)
        self.progress = 0.0

    @property
    def progress(self) -> float:
        return self._progress_here

    @progress.setter
    def progress(self, progress: float) -> None:
        self._progress_here = progress
        self._progress.fill_(progress)

    @property
    def _frozen(self) -> bool:
        return self.method.trains == "scores"

    def latent(self, weight: Tensor) -> Tensor:
        """What is binarized of the latent weight: itself, or what the method's module makes of it."""
        if self.before is None:
            return weight
        with autocast(weight.device, None):  # as signs are not decided in fewer digits
            return cast(Tensor, self.before(weight)).contiguous(memory_format=operators.layout(weight))

    def forward(self, weight: Tensor) -> Tensor:
        weight = self.latent(weight)
        if torch.compiler.is_compiling() or torch.compiler.is_exporting() or kernels.by_proxies():
            return self._by_operators(weight)
        if torch.jit.is_tracing():
            with _untraced(), torch.no_grad():
                return self._use(weight)  # a constant of the trace
        return self._use(weight)

    def _use(self, weight: Tensor) -> Tensor:
        # Transforms (torch.func) lend each layer other scores; those of all are then an argument, to be unwrapped too.
        transformed = torch._C._are_functorch_transforms_active()
        all_scores = self._all_scores() if transformed and self.together else ()
        function = _StraightThrough if transformed else _Plainly
        of_layer = weight, self.scores, self.alpha, self.fixed_mask
        return cast(Tensor, function.apply(*of_layer, _Pass(self), *all_scores)[0])

    def _by_operators(self, weight: Tensor) -> Tensor:
        """The same for a graph, which keeps the operators whole."""
        mask, all_scores = self.fixed_mask, self._all_scores()
        if mask is None and all_scores:
            mask = operators.global_masks([s.detach() for s in all_scores], self._rule)[self.index]
        asked = weight, self.scores, all_scores, self.index, self._rule, self._progress
        return cast(Tensor, operators.binary_weight(*asked, mask, self.alpha)[0])

    def _all_scores(self) -> list[Tensor]:
        return [cast(Tensor, part.scores) for part in self.together]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to `layer.weight` sets the latent weight; ValueError for one of another shape."""
        if weight.shape != self._shape:
            raise ValueError(f"the layer's weight is {[*self._shape]}, and what is assigned is {[*weight.shape]}")
        return weight

    def binary(self, weight: Tensor) -> Tensor:
        """B of the latent `weight`: -1, 0 (pruned), +1 in its shape and dtype."""
        return self.scaled_binary(weight)[0]

    def scaled_binary(self, weight: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """B of the latent `weight`, and alpha >= 0, which broadcasts over it: the weight in use is alpha * B.

        mask: bool in the weight's shape, what to keep in the place of what the method would keep.
        """
        with torch.no_grad():
            layer = self.layer(self.latent(weight), self.scores, self.alpha)
            mask, positive, alpha = self.method.decide(layer, self.fixed_mask if mask is None else mask)
            return kernels.signed(positive, mask, weight.new_ones(())), alpha

    def layer(
        self, weight: Tensor, scores: Tensor | None, alpha: Tensor | None, all_scores: Sequence[Tensor] = ()
    ) -> Layer:
        """The layer as the rules of its method see it, with these for W, S, a learned scale and the S of all layers.

        Raises ValueError where W or S is not whole.
        """
        self.check_whole(weight, scores)
        asked = self.prune_rate, self.p_pos
        return Layer(
            weight.detach(),
            None if scores is None else scores.detach(),
            *asked,
            self.scope,
            self.progress,
            all_scores or self._all_scores(),
            self.index,
            GlobalRanking() if all_scores else self.ranking,
            self.selections,
            partial(self.frozen.derived, weight, *asked, self.selections) if self._frozen else None,
            alpha=None if alpha is None else alpha.detach(),
        )

    def begin_scale(self, weight: Tensor) -> None:
        """Let a learned scale begin where it begins of this latent weight, under the mask of now."""
        if self.alpha is not None:
            with torch.no_grad():
                layer = self.layer(weight, self.scores, None)
                # The mask is that of what is binarized, the magnitudes are those of W.
                mask = self.method.kept(
                    layer if self.before is None else self.layer(self.latent(weight), None, None), self.fixed_mask
                )
                self.alpha.copy_(self.method.decide(layer, mask)[2])

    def check_whole(self, weight: Tensor, scores: Tensor | None, layer: str = "this layer") -> None:
        """Raise ValueError where W or S is not all that the layer has."""
        for name, tensor in (("weight", weight), ("scores", scores)):
            if tensor is not None:
                refuse_part(f"{name} of {layer}", tensor)
                if tensor.shape != self._shape:  # what FullyShardedDataParallel leaves
                    raise ValueError(f"{name} of {layer}, {[*tensor.shape]} of {[*self._shape]}, {REMEDY}")

    def get_extra_state(self) -> Tensor:
        """What the weights in use depend on beside the tensors: float32, see `provenance`."""
        return Provenance.of(self).to_tensor()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on as the state was made: with its pruning rate, if that rises, and with the scale where it was."""
        told = Provenance.from_tensor(state)
        rate = told.prune_rate
        if self.has_binary_input:
            self.scale_on = "output" if told.scale_on == "output" else "weight"
        if rate is not None and Fraction(rate) != as_fraction(self.prune_rate):
            as_float = float(Fraction(rate))
            self.set_prune_rate(as_float if as_fraction(as_float) == Fraction(rate) else Fraction(rate))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        told = state_dict.get(prefix + EXTRA_STATE)
        if told is None:  # of before it was written, and taken for one of this model's method
            told = replace(Provenance.of(self), scale_on="weight").to_tensor()
            state_dict[prefix + EXTRA_STATE] = told
            fault = SCORES_APART if self.scores is not None and self.shares_scores else ""
        else:
            try:
                fault = Provenance.of(self).difference(Provenance.from_tensor(told))
            except ValueError as unreadable:
                fault = str(unreadable)
        errors = lists[-1]
        if fault and fault not in errors:  # it is that of the other layers too
            errors.append(fault)
        if not fault:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def set_prune_rate(self, prune_rate: Number) -> None:
        """Prune this fraction from now on, and of all layers that are ranked together."""
        for part in self.together or (self,):
            part.prune_rate = prune_rate
            part._rule = rule_of(self.method, prune_rate, self.p_pos, self.scope)
            part.forget()

    def forget(self) -> None:
        """Work out anew, in the next pass, what follows from W."""
        self.frozen.forget()

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError("a binarized model decides its weights anew in each pass: script bake_weights(model)")

    def extra_repr(self) -> str:
        on_output = ", scale_on=output" if self.scale_on == "output" else ""
        return f"{self.method.name}, prune_rate={self.prune_rate}, p_pos={self.p_pos}, scope={self.scope}{on_output}"


@contextmanager
def _untraced() -> Iterator[None]:
    """Within, `torch.jit.trace` notes nothing: what comes of it is a constant to the trace."""
    tracer: Any = torch._C
    state = tracer._get_tracing_state()
    tracer._set_tracing_state(None)
    try:
        yield
    finally:
        tracer._set_tracing_state(state)


class _Pass:
    """One use of a layer's weight: what the backward pass needs to know of it that is no tensor.

    layer: as the forward pass saw it; None where a transform has made several passes of one.
    """

    def __init__(self, part: BinaryWeight) -> None:
        self.part = part
        self.progress = part.progress
        self.layer: Layer | None = None


class _StraightThrough(torch.autograd.Function):
    """Forward alpha * B; backward the method's rule for what it trains, and for a learned scale.

    Inputs: W, S or None, a of a learned scale or None, a fixed mask or None, the `_Pass`, and S of all layers where
    these are ranked together under a transform. Outputs: alpha * B, the signs (bool), alpha.
    """

    @staticmethod
    def forward(
        weight: Tensor,
        scores: Tensor | None,
        learned: Tensor | None,
        fixed_mask: Tensor | None,
        this: _Pass,
        *all_scores: Tensor,
    ) -> tuple[Tensor, ...]:
        layer = this.layer = this.part.layer(weight, scores, learned, all_scores)
        mask, positive, alpha = this.part.method.decide(layer, fixed_mask)
        used = kernels.signed(positive, mask, alpha)
        return used.contiguous(memory_format=operators.layout(weight)), positive, alpha

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        weight, scores, learned, _, ctx.this, *all_scores = inputs
        _, positive, alpha = output
        ctx.mark_non_differentiable(positive, alpha)
        ctx.set_materialize_grads(False)
        # Lets autograd notice a change before the backward pass.
        ctx.save_for_backward(weight, scores, learned, positive, alpha, *all_scores)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, scores, learned, positive, alpha, *all_scores = ctx.saved_tensors
        this: _Pass = ctx.this
        method = this.part.method
        of_nobody = [None] * (len(ctx.needs_input_grad) - 3)
        if grads[0] is None:
            return None, None, None, *of_nobody
        layer = this.layer
        if layer is None:
            layer = replace(this.part.layer(weight, scores, learned, all_scores), progress=this.progress)
            layer.kept = method.kept(layer, this.part.fixed_mask)
        gradient = method.gradient(grads[0], layer, positive, alpha)
        of_scale = of_learned_scale(grads[0], layer, positive) if ctx.needs_input_grad[2] else None
        of_weight, of_scores = (None, gradient) if method.trains == "scores" else (gradient, None)
        return of_weight, of_scores, of_scale, *of_nobody

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError("a method is a rule for the backward pass: take torch.func.jacrev, not jacfwd or hessian")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """Each of the weights by itself, as in a pass of its own."""
        outputs = []
        for i in range(info.batch_size):
            each = [x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True)]
            each[4] = _Pass(inputs[4].part)
            outputs.append(_StraightThrough.apply(*each))
        return tuple(map(torch.stack, zip(*outputs, strict=True))), (0, 0, 0)


class _Plainly(_StraightThrough):
    """The same where no transform is active. For a `setup_context` torch looks at a signature each time."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _StraightThrough.forward(*inputs)
        _StraightThrough.setup_context(ctx, inputs, output)
        return output

    setup_context = torch.autograd.Function.setup_context


# torch looks it up in each pass, and works it out anew where it is not there.
_StraightThrough.forward.__signature__ = signature(_StraightThrough.forward)  # type: ignore[attr-defined]


def binary_layers(model: nn.Module) -> Iterator[tuple[str, BinaryWeight, Tensor]]:
    """The name, the parametrization and the latent weight of each binarized layer, in the model's order.

    Of layers that share one weight the first alone, as in `named_parameters`.
    """
    seen: set[Tensor] = set()
    for name, part, weight in binary_parts(model):
        if weight not in seen:
            seen.add(weight)
            yield name, part, weight


def binary_parts(model: nn.Module) -> Iterator[tuple[str, BinaryWeight, Tensor]]:
    """As `binary_layers`, of layers that share one weight each."""
    for name, module in model.named_modules():
        for part in parametrizations(module):
            if isinstance(part, BinaryWeight):
                yield name, part, cast(Tensor, cast(Any, module).parametrizations.weight.original)


@contextmanager
def one_pass(model: nn.Module) -> Iterator[None]:
    """What is read of a model's layers within is one pass: layers that are ranked together are ranked once."""
    rankings = {id(part.ranking): part.ranking for _, part, _ in binary_parts(model)}.values()
    for ranking in rankings:
        ranking.begin()
    try:
        yield
    finally:
        for ranking in rankings:
            ranking.end()


def find_nan(model: nn.Module) -> str | None:
    """The name of the first binarized layer with a NaN in its latent weights or scores; None if there is none.

    Where a module makes other weights of the latent ones (`Method.before`), in these or in its parameters an infinite
    value is as bad: it makes NaNs of it.

    A NaN never leaves a trained tensor, so it is enough to look now and then. Waits for the device, once. Raises
    ValueError for a sharded model.
    """
    refuse_sharded(model)
    names, flags = [], []
    for name, part, weight in binary_layers(model):
        for tensor in (weight, part.scores):
            if tensor is not None and not tensor.is_meta and tensor.numel():
                names.append(name)
                flags.append(tensor.detach().amax().isnan())  # NaN where one is: a tenth of what isnan().any() takes
        for tensor in () if part.before is None else (weight, *part.before.parameters()):
            if not tensor.is_meta and tensor.numel():
                names.append(name)
                flags.append((tensor.detach() * 0).amax().isnan())
    found = torch.stack(flags).tolist() if flags else []
    return names[found.index(True)] if any(found) else None


def refuse_sharded(model: nn.Module) -> None:
    """Raise ValueError, naming what it is, where this process does not have all of the model's parameters."""
    for name, module in model.named_modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):  # at times they are whole, but on loan
            raise ValueError(f"module {name!r} {REMEDY}")
    for name, parameter in model.named_parameters():
        refuse_part(f"parameter {name!r}", parameter)
    for name, part, weight in binary_layers(model):
        part.check_whole(weight, part.scores, f"layer {name!r}")


def refuse_nan(model: nn.Module) -> None:
    """Raise ValueError, naming the layer, for a NaN in latent weights or scores, and for a sharded model."""
    layer = find_nan(model)
    if layer is not None:
        raise ValueError(f"layer {layer!r} has NaN in its latent weights or scores")


def parametrizations(module: nn.Module) -> Sequence[nn.Module]:
    """Those of the module's weight."""
    return module.parametrizations.weight if parametrize.is_parametrized(module, "weight") else ()  # type: ignore


def is_binarized(module: nn.Module) -> bool:
    return any(isinstance(part, BinaryWeight) for part in parametrizations(module))

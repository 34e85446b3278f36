"""A run's network and optimizer at its start, and what must fit together for there to be any."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from functools import partial
from inspect import unwrap
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from .. import sparse
from ..activation_modules import ACTIVATIONS
from ..activations import EdeActivation, Estimator
from ..binarizable import layers_of, layers_to_binarize
from ..bop import Bop, parameter_groups
from ..compute import set_compute
from ..data import Dataset
from ..data.batches import ClassBatches
from ..devices import check_captures, fused_optimizers
from ..dtypes import float32_by_default
from ..given_masks import fix_masks, has_fixed_mask
from ..gradients import Ede, Gradient
from ..initial import EmptyLayers, initial_masks
from ..masks import find_initial_mask
from ..methods import find_method
from ..models import AROUND, NORM_FIRST, create_model, find_network
from ..parametrization import binary_layers
from ..penalties import PENALTIES
from ..real_valued import StaysReal, real_matrices
from ..redraw import Redraw
from ..rotation import Rotation
from ..step_rules import StepRules
from ..usage import usage
from ..weights import binarize_weights, check_kept, learned_scales, scale_groups
from .canonical import rewind_point
from .config import Run

Kind = TypeVar("Kind", bound=Optimizer)


def build(run: Run, dataset: Dataset) -> tuple[nn.Module, Optimizer | None]:
    """The run's network and optimizer at its start, on the device of the data."""
    model = build_model(run, dataset).to(dataset.device)
    return model, build_optimizer(run, model)


def check_compiles(run: Run) -> None:
    """Raise ValueError where torch.compile is asked for and does not work here, for want of a C++ compiler say."""
    if not run.compile:
        return
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no processes of its own, which a kill would leave
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=run.device))
    except Exception as fault:
        reason = next(line for line in f"{fault}\n{type(fault).__name__}".splitlines() if line.strip())
        raise ValueError(f"torch.compile does not work here ({reason}): leave compile out") from fault


def check_computes(run: Run) -> None:
    """Raise ValueError where it is not decided how layers compute, or where they, or the step, cannot do so here."""
    if run.compute == "auto":
        raise ValueError("compute is auto: Run.resolved decides it for this machine")
    if run.compute == "sparse" and not sparse.available(run.device):
        raise ValueError(sparse.why_not(run.device))
    if run.graph:
        check_captures(torch.device(run.device))


def compiled(run: Run, model: nn.Module) -> nn.Module:
    """The model as a training step calls it, compiled where the run asks for that."""
    if not run.compile:
        return model
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, run.prune_epochs + 8)  # a graph for each pruning rate
    return cast(nn.Module, torch.compile(model))


# Scales that tell methods apart by what each filter's weights are.
FILTER_SCALES = ("l1-filter", "least-squares", "learned", "learned-l1-filter", "learned-median")


def build_model(run: Run, dataset: Dataset) -> nn.Module:
    """The run's network for this data, with its method on.

    The weights keep torch's default layout; images in channels-last make the activations follow them all the same.
    """
    return build_network(run, dataset.num_classes, dataset.in_channels, dataset.image_size)


def build_network(run: Run, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The run's network for images and classes of these numbers, with its method on, in float32.

    What stays real-valued in it is for a command to tell, once (`real_matrices`). Layers may keep nothing, as in
    records of before: `check_begins` refuses that.
    """
    activations: str | Estimator = EdeActivation(run.ede_t0) if run.activations == "ede" else run.activations
    with float32_by_default():
        model = create_model(
            run.model,
            num_classes,
            in_channels,
            image_size,
            run.seed,
            width=run.width,
            activations=activations,
            **{name: getattr(run, name) for name in AROUND},
        )
    latent_gradient: str | Gradient = Ede(run.ede_t0) if run.latent_gradient == "ede" else run.latent_gradient
    # Only these rules need a look at an image, and networks that a trace cannot see through.
    by_use = {"first", "last"} & {*run.skip} or run.activations in ACTIVATIONS or run.block == "real-to-binary"
    image = torch.empty(1, in_channels, image_size, image_size, device="meta") if by_use else None
    masked = _all_kept(model, run, image) if run.mask else {}
    method, penalty = find_method(run.method), PENALTIES.get(run.penalty)
    if method.penalty is not penalty:
        method = replace(method, penalty=penalty)
    if run.rotation_gradient == "code":
        method = replace(method, before=partial(Rotation, code=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaysReal)
        model = binarize_weights(
            model,
            method,
            run.prune_rate,
            run.p_pos,
            "layer" if run.mask else run.scope,
            run.skip,
            run.init,
            run.seed,
            scale=run.scale,
            scale_on=run.scale_on,
            latent_gradient=latent_gradient,
            score_gradient=run.score_gradient,
            train_affine=run.train_affine,
            learn_mask=run.learn_mask,
            allow_empty=True,
            example=image,
        )
    if run.mask:  # which keeps all until `begin_mask`
        fix_masks(model, masked)
    if rules := step_rules(run, model):
        rules.after_step()  # each step is to find weights as it is to leave them
    return set_compute(model, "sparse") if run.compute == "sparse" else model


def _all_kept(model: nn.Module, run: Run, image: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """For each layer that a mask of the run is for, one that keeps all."""
    use = None if image is None else usage(model, layers_of(model), image)
    layers = layers_to_binarize(model, run.skip, use)
    return {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()}


def begin_mask(run: Run, model: nn.Module, dataset: Dataset) -> None:
    """Put on the run's network, as it is drawn, the mask that is fixed before it is trained.

    Of the training images it looks at as many of each class as the rule asks for, drawn by the run's seed, without
    augmentation, in two halves and these in batches of the run's size. Raises ValueError as `initial_masks` does.
    """
    rule = find_initial_mask(run.mask)
    layers = [name for name, module in model.named_modules() if has_fixed_mask(module)] or None
    batches = ClassBatches(dataset, rule.images, run.batch_size, run.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyLayers)  # which the result tells (`note`)
        masks = initial_masks(model, rule, run.prune_rate, batches, run.scope, run.seed, layers)
    fix_masks(model, masks, allow_empty=True)
    for _, part, latent in binary_layers(model):
        part.begin_scale(latent)


def step_rules(run: Run, model: nn.Module, epoch_steps: int = 0) -> StepRules | None:
    """What the run's steps have beside loss and optimizer, if anything. epoch_steps: how many an epoch has."""
    if run.penalty == "none" and not (run.centre or run.clip_weights) and find_method(run.method).before is None:
        return None
    return StepRules(model, run.penalty_lambda, run.centre, run.clip_weights, epoch_steps)


def redraws(run: Run, model: nn.Module, epoch_steps: int) -> Redraw | None:
    """What gives the run's pruned weights other values, if anything."""
    if not run.redraw:
        return None
    return Redraw(model, run.redraw, run.redraw_every, run.redraw_share, run.seed, run.init, epoch_steps)


def build_optimizer(run: Run, model: nn.Module) -> Optimizer | None:
    """The run's optimizer over what its method trains, fused where torch has that; None where nothing is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        return None
    scales = {id(scale) for scale in learned_scales(model)}
    groups: Any = parameter_groups(model) if run.method == "bop" else [{"params": trained}]
    if scales:
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in scales]
        groups = [*groups, *scale_groups(model, adaptive=run.optimizer == "adam")]
    fused = fused_optimizers(trained[0].device)
    if run.optimizer == "adam":
        adam: dict[str, Any] = {"weight_decay": run.weight_decay, "fused": fused, "capturable": run.graph}
        return _apart_from_compiler(Adam)(groups, run.lr, **adam)
    sgd: dict[str, Any] = {
        "momentum": run.momentum,
        "weight_decay": run.weight_decay,
        "nesterov": run.nesterov,
        "fused": fused,
    }
    if run.method != "bop":
        optimizer = _apart_from_compiler(SGD)(groups, run.lr, **sgd)
    else:
        optimizer = _apart_from_compiler(Bop)(groups, run.lr, run.bop_gamma, run.bop_tau, **sgd)
    # A first step that the loss scaler skips would leave torch's fused SGD with momentum from uninitialised memory.
    for group in optimizer.param_groups if run.precision == "fp16" else ():
        for parameter in group["params"] if group["momentum"] and not group.get("flips") else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _apart_from_compiler(kind: type[Kind]) -> type[Kind]:
    """An optimizer's class without what keeps its methods from torch's compiler, which takes a second to import."""
    names = "add_param_group", "zero_grad", "state_dict", "load_state_dict", "step"
    methods: dict[str, Any] = {name: unwrap(getattr(kind, name)) for name in names}
    return cast(type[Kind], type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])}))


def check_network(run: Run) -> nn.Module:
    """The run's network as far as it is known without the data, with no memory for its weights.

    Raises ValueError for what can be told to be wrong by then: layers to skip, a given image size.
    """
    with torch.device("meta"):
        return build_network(run, 10, 3, run.image_size or find_network(run.model).image_size)


def check_fits(run: Run, dataset: Dataset) -> nn.Module:
    """The run's network for this data, with no memory for its weights.

    Raises ValueError where network, method or batch do not fit the data.
    """
    images = len(dataset.train) - (dataset.held_out_count(run.holdout) if run.holdout else 0)
    if run.batch_size > images:
        raise ValueError(f"batch_size {run.batch_size} is more than the {images} training images of {run.data}")
    steps = images // run.batch_size
    count, unit = rewind_point(run.rewind, run.epochs)
    if unit == "it" and count > run.epochs * steps:
        raise ValueError(f"rewind {run.rewind}: the run has {run.epochs * steps:,} steps")
    period = run.redraw_every * (1 if run.redraw == "iterand" else steps)
    if run.redraw and period > run.epochs * steps - (run.redraw == "recycle"):
        raise ValueError(
            f"redraw_every {run.redraw_every}: nothing would be redrawn in {run.epochs} epochs, "
            f"{run.epochs * steps:,} steps"
        )
    with torch.device("meta"):
        return build_model(run, dataset)


def check_begins(run: Run, model: nn.Module) -> None:
    """Raise ValueError where a layer of the run's network keeps nothing: no training of it is to begin or to go on."""
    try:
        check_kept(model)
    except ValueError as fault:
        raise ValueError(f"{run.method} on {run.model}: {fault}") from fault


def notes_on(run: Run, model: nn.Module) -> list[str]:
    """Lines about what a run's method leaves real-valued unexpectedly in its network, and what of it has no effect."""
    line = "" if run.method == "dense" else real_matrices(model)
    return [note for note in (f"{run.model}: {line}" if line else "", idle_scale(run)) if note]


def idle_scale(run: Run) -> str:
    """A line where a scale that makes the run's method what it is does nothing for batch norm behind it; else ''."""
    if run.activations == "real" or (run.scale not in FILTER_SCALES and run.output_scale == "none"):
        return ""
    if run.block not in NORM_FIRST:
        place, remedy = (
            "each layer but the last",
            "--block norm-first, with resnet18 and resnet34, has it count in each",
        )
    elif run.model.startswith("conv"):
        place, remedy = "each layer but the last two", "resnet18 and resnet34 have it count in each"
    else:
        return ""
    if run.output_scale in ("none", "gamma-1"):
        scale = run.scale if run.output_scale == "none" else run.output_scale
        idle = f"the scale {scale} does nothing there"
    else:
        idle = f"of the scale {run.output_scale} only what varies with the place does anything there"
    return f"{run.method} on {run.model} with binary activations: batch norm follows {place}, and {idle}; {remedy}"

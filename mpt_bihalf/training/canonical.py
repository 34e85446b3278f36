"""The one form that equal runs have, and the values that a run may have at all.

The functions take a run as its fields were given: `Run` asks them while it is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..activation_modules import ACTIVATIONS, find_activation
from ..activations import ACTIVATION_GRADIENTS
from ..binarizers import sign
from ..compute import COMPUTE
from ..counts import fraction_within
from ..data import check_name, own_augmentation
from ..data.mixing import HARDEST, MIXES
from ..devices import HOST
from ..files import expanded
from ..gradients import LATENT_GRADIENTS, SCORE_GRADIENTS, Ede
from ..initialise import INITS
from ..masks import SCOPES, find_initial_mask, initial_mask_names
from ..methods import METHODS, Method, find_method
from ..models import check_activation, check_block, check_scales, find_network
from ..penalties import PENALTIES, STARTS
from ..redraw import EVERY, SHARE, check_redraw
from ..rotation import Rotation
from ..rounds import CRITERIA, CUT_OFFS
from ..scale_modules import OUTPUT_SCALES
from ..scales import SCALES, Learned
from ..weights import SCALE_ON

if TYPE_CHECKING:
    from .config import Run

# What augment says of flip and crop_padding where these say auto; None: the data set's own.
BOTH_PARTS = {"auto": None, "none": False, "standard": True}
RISES_FROM = 0.5  # where a rising pruning rate starts, in the MPT authors' later code
# Of --mask imp: the share that its authors prune in each round, and the controls that it has.
IMP_SHARE = 0.2
IMP_CONTROLS = ("shuffled", "redrawn", "one-shot")
RESNET20_T0 = 1e-3  # where EDE's sharpness starts on 1/1 ResNet-20, in IR-Net's code


# The fields of a run that name what may be registered, by what fails for a name that is not.
PARTS: dict[str, Callable[[str], object]] = {
    "method": find_method,
    "model": find_network,
    "data": check_name,
    "scale": lambda name: not name or SCALES[name],
    "latent_gradient": lambda name: not name or LATENT_GRADIENTS[name],
    "score_gradient": lambda name: not name or SCORE_GRADIENTS[name],
    "activations": lambda name: name in ("real", "binary") or known_activations()[name],
    "output_scale": lambda name: name in ("", "none") or OUTPUT_SCALES[name],
    "penalty": lambda name: name in ("", "none") or PENALTIES[name],
    "mask": lambda name: name in ("", "imp") or find_initial_mask(name),
}


def known_activations() -> dict[str, Any]:
    """What inputs may become binary by; a name that is in both is the activation of that estimator."""
    return {**ACTIVATION_GRADIENTS, **ACTIVATIONS}


def registered(part: str, name: str) -> bool:
    """Whether something here is registered as a run's method, model ... of this name."""
    try:
        PARTS[part](name)
    except (ValueError, KeyError):
        return False
    return True


def check(run: Run) -> None:
    """Raise ValueError, in one line, for a value that is unknown or out of range."""
    for name, known in (
        ("method", METHODS),
        ("mask", ["", *initial_mask_names(), "imp"]),
        ("imp_criterion", CRITERIA),
        ("imp_control", ["", *IMP_CONTROLS]),
        ("redraw", ["", *EVERY]),
        ("scope", ["", *SCOPES]),
        ("init", [init for init in INITS if init != "keep"]),
        ("scale", ["", *SCALES]),
        ("scale_on", ["", *SCALE_ON]),
        ("latent_gradient", ["", *LATENT_GRADIENTS]),
        ("score_gradient", ["", *SCORE_GRADIENTS]),
        ("compute", ["auto", *COMPUTE]),
        ("optimizer", ["sgd", "adam"]),
        ("schedule", ["cosine", "linear", "step", "constant"]),
        ("precision", ["fp32", "bf16", "fp16"]),
        ("augment", [*BOTH_PARTS, *MIXES]),
        ("flip", ["auto", "on", "off"]),
        ("crop_padding", ["auto", "on", "off"]),
        ("activations", ["real", "binary", *known_activations()]),
        ("rotation_gradient", ["exact", "code"]),
        ("output_scale", ["", "none", *OUTPUT_SCALES]),
        ("penalty", ["", "none", *PENALTIES]),
    ):
        if getattr(run, name) not in known:
            options = ", ".join(value for value in known if value) + ", and your own by --plugin" * (name in PARTS)
            raise ValueError(f"unknown {name} {getattr(run, name)!r}; known: {options}")
    find_network(run.model)
    check_name(run.data)
    _check_network(run)
    _check_names(run)
    _check_rules(run)
    _check_mask(run)
    _check_redraw(run)
    fraction_within(run.prune_rate, "prune_rate", below_one=True)
    fraction_within(run.p_pos, "p_pos")
    fraction_within(run.redraw_share, "redraw_share")
    fraction_within(run.gaussian_clean, "gaussian_clean")
    fraction_within(run.holdout, "holdout", below_one=True)
    fraction_within(run.label_smoothing, "label_smoothing", below_one=True)
    for name, lowest, highest in (
        ("epochs", 1, 1_000_000),
        ("batch_size", 1, 1_000_000),
        ("image_size", 0, 1024),
        ("seed", 0, 2**63 - 1),
        ("threads", 0, 1024),
        ("trace", 0, 1_000_000),
        ("prune_epochs", 0, 1_000_000),
        ("processes", 1, 1_000_000),
        ("workers", 0, 1024),
        ("redraw_every", 0, 1_000_000_000),
    ):
        if not lowest <= getattr(run, name) <= highest:
            raise ValueError(f"{name} must lie in {lowest} to {highest}, not {getattr(run, name)}")
    for name in ("lr", "weight_decay", "bop_tau", "ede_t0", "penalty_lambda", "gaussian_std"):
        if not 0 <= getattr(run, name) < float("inf"):
            raise ValueError(f"{name} must be a finite number of at least 0, not {getattr(run, name)}")
    if run.data_digest and not re.fullmatch("[0-9a-f]{64}", run.data_digest):
        raise ValueError(f"data_digest must be 64 hexadecimal digits, not {run.data_digest[:80]!r}")
    if not 1 <= run.augmix_severity <= HARDEST:
        raise ValueError(f"augmix_severity must lie in [1, {HARDEST}], not {run.augmix_severity}")
    if not 0 < run.width <= 64:
        raise ValueError(f"width must lie in (0, 64], not {run.width}")
    if not 0 <= run.bop_gamma <= 1:
        raise ValueError(f"bop_gamma must lie in [0, 1], not {run.bop_gamma}")
    _check_compute(run)
    _check_optimizer(run)
    if run.graph and (run.compile or run.processes > 1):
        raise ValueError("graph is of one process and not compiled: leave compile and further processes, or graph, out")
    if run.schedule == "step" and not run.milestones:
        raise ValueError("the step schedule needs --milestones")
    if run.batch_size % run.processes:
        raise ValueError(f"batch_size {run.batch_size} cannot be divided evenly among {run.processes} processes")
    if any(milestone < 1 for milestone in run.milestones):
        raise ValueError(f"milestones must be epochs from 1 on, not {min(run.milestones)}")


def _check_optimizer(run: Run) -> None:
    if run.method == "bop" and run.optimizer != "sgd":
        raise ValueError("bop flips its binary weights and trains the rest by sgd: leave --optimizer at sgd")
    if not 0 <= run.momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), not {run.momentum}")
    if not 0 <= run.warmup < max(1, run.epochs):
        raise ValueError(
            f"warmup must be fewer epochs than the {run.epochs} of the run, and at least 0, not {run.warmup}"
        )
    if run.nesterov and not (run.optimizer == "sgd" and run.momentum):
        raise ValueError("nesterov is for sgd with momentum: leave it out, or give it both")


def _check_names(run: Run) -> None:
    for part in ("method", "model"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+:-]*", getattr(run, part)):
            raise ValueError(f"{part} {getattr(run, part)!r} names folders: take letters, digits, and . _ + - in it")


def _check_network(run: Run) -> None:
    check_block(run.model, run.block, run.activations != "real")
    check_scales(run.model, run.output_scale or "none", run.input_scale, run.activations != "real")
    if run.activations != "real":
        own = find_method(run.method).activation_gradient
        activation = own if run.activations == "binary" else run.activations
        check_activation(run.model, run.block, run.input_scale, find_activation(activation))


def _check_rules(run: Run) -> None:
    asked = [name for name in ("centre", "clip_weights") if getattr(run, name)]
    asked += ["penalty"] * (run.penalty not in ("", "none"))
    method = find_method(run.method)
    if run.penalty_lambda != type(run).penalty_lambda and (run.penalty or _penalty_of(method)) == "none":
        raise ValueError(f"penalty_lambda is for a penalty, and {run.method} has none: say --penalty r1 or r2 with it")
    if run.rotation_gradient != "exact" and method.before is not Rotation:
        raise ValueError(f"rotation_gradient is for rbnn, and {run.method} rotates nothing: leave it out")
    if asked and (method.trains != "weights" or method.binarizer is None):
        has = "has none" if method.binarizer is None else f"trains {method.trains}"
        raise ValueError(f"{asked[0]} is for methods that train latent weights, and {run.method} {has}: leave it out")


def _check_mask(run: Run) -> None:
    method = find_method(run.method)
    if not 0.01 <= run.imp_share <= 1:
        raise ValueError(f"imp_share must lie in [0.01, 1], not {run.imp_share}")
    rewind_point(run.rewind, run.epochs)
    if run.mask and method.mask is not None and method.trains != "scores":
        raise ValueError(
            f"{run.method} has a mask of its own, that follows its weights: leave --mask {run.mask} out, or take sign, "
            "bihalf, dense or another method without one"
        )
    if run.mask == "grasp" and run.activations != "real":
        raise ValueError("grasp takes second derivatives, which binary activations have not: take real ones")
    if run.mask in ("magnitude", "synflow") and (method.trains == "signs" or run.init == "signed_constant"):
        of = "bop has no others" if method.trains == "signs" else "init signed_constant draws no others"
        raise ValueError(f"{run.mask} ranks weights by their size, and {of} than of one size: take another of either")
    if run.mask == "imp":
        _check_rounds(run, method)
    if run.mask and run.prune_epochs:
        raise ValueError("prune_epochs is for masks that are learned, and --mask is fixed: leave one of them out")


def _check_redraw(run: Run) -> None:
    method = find_method(run.method)
    if not run.redraw:
        return
    if method.trains != "scores" or run.mask or not run.learn_mask:
        why = f"{run.method} trains {method.trains}" if method.trains != "scores" else "here no scores are trained"
        raise ValueError(f"redraw is for frozen weights under learned scores, and {why}: leave it out")
    check_redraw(run.redraw, run.method, method.binarizer)
    if run.graph:
        raise ValueError("graph keeps the signs of frozen weights, and redraw changes them: leave one of them out")


def _check_rounds(run: Run, method: Method) -> None:
    if method.trains != "weights":
        raise ValueError(
            f"imp prunes trained weights, and {run.method} trains {method.trains}: take dense, sign, bihalf or another "
            "method that trains weights"
        )
    if run.imp_criterion == "cutoff" and (method.before is not None or method.binarizer not in CUT_OFFS):
        raise ValueError(f"no cut-off is known of the weights of {run.method}: take imp_criterion magnitude")
    if not run.prune_rate:
        raise ValueError("imp prunes: give it a prune_rate above 0")


def rewind_point(text: str, epochs: int) -> tuple[int, str]:
    """How many steps (`it`) or epochs (`ep`), e.g. (2, "ep"); ValueError for anything else, or too many epochs."""
    match = re.fullmatch(r"(\d{1,9})(it|ep)", text) if text else None
    if text and not match:
        raise ValueError(f"rewind {text[:80]!r}: write steps as 500it, or epochs as 2ep")
    count, unit = (int(match[1]), match[2]) if match else (0, "it")
    if unit == "ep" and count > epochs:
        raise ValueError(f"rewind {text}: the run has {epochs} epochs")
    return count, unit


def _check_compute(run: Run) -> None:
    if run.compute == "sparse" and (run.precision != "fp32" or run.compile):
        raise ValueError("compute sparse is in float32 and not compiled: leave precision and compile, or compute, out")
    if run.compute == "sparse" and run.device not in ("auto", HOST.type):
        raise ValueError(f"compute sparse is for the {HOST.type}, not {run.device}: leave it or the device out")


def canonical(run: Run) -> dict[str, Any]:
    """The fields that take another value than they were given, or may, with that value."""
    method = find_method(run.method)
    own = {
        "scale": _name_of(method, "scale", SCALES),
        "latent_gradient": _name_of(method, "latent_gradient", LATENT_GRADIENTS),
        "score_gradient": _name_of(method, "score_gradient", SCORE_GRADIENTS),
    }
    estimator = _name_of(method, "activation_gradient", known_activations())
    # No name twice; the network's own rules where nothing is said, which for some networks is to skip none.
    skip, rules = tuple(dict.fromkeys(name for name in run.skip if name != "none")), find_network(run.model).skip
    if rules and not skip:
        skip = ("none",) if run.skip else rules
    found: dict[str, Any] = {
        **{part: getattr(run, part) or name for part, name in own.items()},
        "skip": skip,
        "activations": estimator if run.activations == "binary" else run.activations,
        "milestones": tuple(run.milestones) if run.schedule == "step" else (),
        **_augmentation(run),
    }
    kind, _, path = run.data.partition(":")
    if path:
        found["data"] = f"{kind}:{expanded(path).absolute()}"
    if run.data_root:  # whoever does the run may do it in another folder
        found["data_root"] = str(expanded(run.data_root).absolute())
    masked = bool(run.mask) or method.mask is not None
    if not masked:
        found["prune_rate"] = 0.0
    if not masked or run.prune_rate <= RISES_FROM:
        found["prune_epochs"] = 0
    found["scope"] = run.scope or ("global" if run.mask else "layer")
    if not method.scoped and not run.mask:
        found["scope"] = "layer"
    found |= _rounds(run, method) | _redraws(run)
    if not method.balanced:
        found["p_pos"] = 0.5
    if method.trains != "signs":
        found |= {"bop_gamma": type(run).bop_gamma, "bop_tau": type(run).bop_tau}
    if method.trains != "scores":
        found |= {"score_gradient": "latent", "train_affine": False, "learn_mask": True}
    else:
        found["latent_gradient"] = "scaled"
        if run.mask:
            found |= {"score_gradient": own["score_gradient"], "learn_mask": False}
    if method.trains == "weights" and method.binarizer is not None:  # or says why they do not go together
        replace(method, scale=SCALES[found["scale"]], latent_gradient=LATENT_GRADIENTS[found["latent_gradient"]])
    real = method.binarizer is None or found["activations"] == "real"
    found["scale_on"] = "weight" if real else run.scale_on or "output"
    pruned = run.prune_rate if masked else 0.0
    slower = pruned < find_network(run.model).sparse_from
    if method.binarizer is None or (run.compute == "auto" and (slower or run.precision != "fp32" or run.compile)):
        found["compute"] = "dense"
    if method.binarizer is None:
        found |= {"scale": own["scale"], "latent_gradient": "scaled"} | ({} if run.mask else {"skip": ()})
    found["output_scale"] = run.output_scale or ("none" if run.activations == "real" else method.output_scale)
    found |= _penalised(run, method)
    found["clip_weights"] = run.clip_weights or method.clip_weights
    if run.optimizer != "sgd":
        found["momentum"] = 0.0
    sharp = RESNET20_T0 if run.model == "resnet20" and found["activations"] != "real" else Ede.t0
    found["ede_t0"] = run.ede_t0 or sharp if "ede" in (found["latent_gradient"], found["activations"]) else Ede.t0
    return found


def _rounds(run: Run, method: Method) -> dict[str, Any]:
    """The fields of iterative pruning, for a run of it and for others."""
    if run.mask != "imp":
        return {name: getattr(type(run), name) for name in ("imp_share", "imp_criterion", "rewind", "imp_control")}
    one_shot = run.imp_control == "one-shot"
    count, unit = rewind_point(run.rewind, run.epochs)
    return {
        "imp_share": 1.0 if one_shot else run.imp_share,
        # Under sign the cut-off is 0, and both are the same.
        "imp_criterion": "magnitude" if method.binarizer is sign else run.imp_criterion,
        "rewind": f"{count}{unit}" if count else "",
        "imp_control": "" if one_shot else run.imp_control,
    }


def _redraws(run: Run) -> dict[str, Any]:
    if not run.redraw:
        return {"redraw_every": 0, "redraw_share": 0.0}
    every, share = run.redraw_every or EVERY[run.redraw], run.redraw_share or SHARE[run.redraw]
    return {"redraw_every": every, "redraw_share": share}


def _penalty_of(method: Method) -> str:
    return _name_of(method, "penalty", {"none": None, **PENALTIES})


def _penalised(run: Run, method: Method) -> dict[str, Any]:
    """penalty and penalty_lambda, and the scale that begins where the penalty that is asked for is least."""
    own = _penalty_of(method)
    penalty = run.penalty or own
    found: dict[str, Any] = {"penalty": penalty}
    if penalty == "none":
        found["penalty_lambda"] = type(run).penalty_lambda
    elif penalty != own and not run.scale and isinstance(method.scale, Learned):
        found["scale"] = STARTS[penalty]
    return found


def _augmentation(run: Run) -> dict[str, Any]:
    """augment, flip and crop_padding: equal for equal effects, and auto for what the data set does by itself.

    And how strong what comes after them is, where it does.
    """
    mixed = run.augment in MIXES
    others = {"augmix": ("gaussian_std", "gaussian_clean"), "gaussian": ("augmix_severity",)}
    idle = others.get(run.augment, ("gaussian_std", "gaussian_clean", "augmix_severity", "jsd"))
    strength = {name: getattr(type(run), name) for name in idle}
    own = own_augmentation(run.data)
    flip, crop = both = tuple(
        default if said is None else said for said, default in zip(run.augmentation, own, strict=True)
    )
    if both != own and flip == crop and not mixed:
        return {"augment": "standard" if flip else "none", "flip": "auto", "crop_padding": "auto", **strength}
    parts = zip(("flip", "crop_padding"), both, own, strict=True)
    named = {name: "auto" if part == default else "on" if part else "off" for name, part, default in parts}
    return {"augment": run.augment if mixed else "auto", **named, **strength}


def _name_of(method: Method, part: str, known: dict[str, Any]) -> str:
    """What a part of the method is called, by which a run is known; ValueError where it has no name."""
    for name, value in known.items():
        if value == getattr(method, part):
            return name
    registry = {"penalty": "PENALTIES"}.get(part, part.upper() + "S")
    raise ValueError(
        f"the {part} of method {method.name!r} has no name for runs to be known by: enter it in {registry}"
    )

"""Binary lottery tickets: edge-popup masks with optimal-transport binarization, in PyTorch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import measures as measures
    from .activation_modules import ACTIVATIONS as ACTIVATIONS
    from .activation_modules import SIGN_TERMS as SIGN_TERMS
    from .activation_modules import Activation as Activation
    from .activation_modules import ChannelShift as ChannelShift
    from .activation_modules import RPReLU as RPReLU
    from .activation_modules import SampleStandard as SampleStandard
    from .activation_modules import SignTerms as SignTerms
    from .activations import ACTIVATION_GRADIENTS as ACTIVATION_GRADIENTS
    from .activations import BinaryActivation as BinaryActivation
    from .bake import bake_weights as bake_weights
    from .binarizers import BINARIZERS as BINARIZERS
    from .bop import Bop as Bop
    from .bop import parameter_groups as parameter_groups
    from .compute import set_compute as set_compute
    from .given_masks import fix_masks as fix_masks
    from .given_masks import start_scores as start_scores
    from .gradients import LATENT_GRADIENTS as LATENT_GRADIENTS
    from .gradients import SCORE_GRADIENTS as SCORE_GRADIENTS
    from .gradients import Ede as Ede
    from .initial import EmptyLayers as EmptyLayers
    from .initial import initial_masks as initial_masks
    from .initial_scores import Untrained as Untrained
    from .layer import Layer as Layer
    from .masks import MASKS as MASKS
    from .masks import InitialMask as InitialMask
    from .masks import Threshold as Threshold
    from .masks import global_score_masks as global_score_masks
    from .masks import score_mask as score_mask
    from .methods import METHODS as METHODS
    from .methods import Method as Method
    from .models import MODELS as MODELS
    from .models import create_model as create_model
    from .parametrization import binary_layers as binary_layers
    from .parametrization import find_nan as find_nan
    from .penalties import PENALTIES as PENALTIES
    from .redraw import Redraw as Redraw
    from .rotation import Rotation as Rotation
    from .rounds import trained_masks as trained_masks
    from .scale_modules import OUTPUT_SCALES as OUTPUT_SCALES
    from .scale_modules import Gamma as Gamma
    from .scale_modules import Gated as Gated
    from .scale_modules import InputScaled as InputScaled
    from .scale_modules import ScaledOutput as ScaledOutput
    from .scales import SCALES as SCALES
    from .step_rules import StepRules as StepRules
    from .sweep import load_run as load_run
    from .sweep import runs as runs
    from .tickets import compile_ticket as compile_ticket
    from .tickets import load_ticket as load_ticket
    from .tickets import save_ticket as save_ticket
    from .tickets import ticket_weights as ticket_weights
    from .training import Callback as Callback
    from .training import Run as Run
    from .training import train as train
    from .transport import binarize as binarize
    from .weights import binarize_weights as binarize_weights
    from .weights import binary_weights as binary_weights
    from .weights import forget as forget
    from .weights import learned_scales as learned_scales
    from .weights import scale_groups as scale_groups
    from .weights import set_progress as set_progress
    from .weights import set_prune_rate as set_prune_rate
    from .weights import shuffle_scores as shuffle_scores

__version__ = "0.1.0"

# Where each name comes from. It is fetched when it is asked for: torch takes seconds to import, in which a command must
# be able to end in one line.
_HOMES = {
    "activation_modules": [
        "ACTIVATIONS",
        "SIGN_TERMS",
        "Activation",
        "ChannelShift",
        "RPReLU",
        "SampleStandard",
        "SignTerms",
    ],
    "activations": ["ACTIVATION_GRADIENTS", "BinaryActivation"],
    "bake": ["bake_weights"],
    "binarizers": ["BINARIZERS"],
    "bop": ["Bop", "parameter_groups"],
    "given_masks": ["fix_masks", "start_scores"],
    "compute": ["set_compute"],
    "gradients": ["LATENT_GRADIENTS", "SCORE_GRADIENTS", "Ede"],
    "initial": ["EmptyLayers", "initial_masks"],
    "initial_scores": ["Untrained"],
    "layer": ["Layer"],
    "masks": ["MASKS", "InitialMask", "Threshold", "global_score_masks", "score_mask"],
    "methods": ["METHODS", "Method"],
    "models": ["MODELS", "create_model"],
    "parametrization": ["binary_layers", "find_nan"],
    "penalties": ["PENALTIES"],
    "scale_modules": ["OUTPUT_SCALES", "Gamma", "Gated", "InputScaled", "ScaledOutput"],
    "redraw": ["Redraw"],
    "rotation": ["Rotation"],
    "rounds": ["trained_masks"],
    "scales": ["SCALES"],
    "step_rules": ["StepRules"],
    "sweep": ["load_run", "runs"],
    "tickets": ["compile_ticket", "load_ticket", "save_ticket", "ticket_weights"],
    "training": ["Callback", "Run", "train"],
    "transport": ["binarize"],
    "weights": [
        "binarize_weights",
        "binary_weights",
        "forget",
        "learned_scales",
        "scale_groups",
        "set_progress",
        "set_prune_rate",
        "shuffle_scores",
    ],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

# Of trainings, sweeps and tickets the module itself is the place.
_ELSEWHERE = ("sweep", "tickets", "training")
__all__ = ["measures", *(name for name, module in _HOME.items() if module not in _ELSEWHERE)]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value
    if name.isidentifier() and not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOME})

"""Binary lottery tickets: edge-popup masks with optimal-transport binarization, in PyTorch."""

from . import measures
from .activations import ACTIVATION_GRADIENTS, BinaryActivation
from .bake import bake_weights
from .binarizers import BINARIZERS
from .bop import Bop, parameter_groups
from .given_masks import fix_masks, start_scores
from .gradients import LATENT_GRADIENTS, SCORE_GRADIENTS, Ede
from .masks import MASKS, global_score_masks, score_mask
from .methods import METHODS, Method
from .models import MODELS, create_model
from .parametrization import binary_layers, find_nan
from .scales import SCALES
from .transport import binarize
from .weights import binarize_weights, binary_weights, forget, set_progress, set_prune_rate, shuffle_scores

__version__ = "0.1.0"

__all__ = [
    "ACTIVATION_GRADIENTS",
    "BINARIZERS",
    "LATENT_GRADIENTS",
    "MASKS",
    "METHODS",
    "MODELS",
    "SCALES",
    "SCORE_GRADIENTS",
    "BinaryActivation",
    "Bop",
    "Ede",
    "Method",
    "bake_weights",
    "binarize",
    "binarize_weights",
    "binary_layers",
    "binary_weights",
    "create_model",
    "find_nan",
    "fix_masks",
    "forget",
    "global_score_masks",
    "measures",
    "parameter_groups",
    "score_mask",
    "set_progress",
    "set_prune_rate",
    "shuffle_scores",
    "start_scores",
]


def __getattr__(name: str) -> object:
    # What they need of the training takes a second to import.
    if name in ("load_ticket", "save_ticket", "ticket_weights"):
        from . import tickets

        return getattr(tickets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Binary lottery tickets: edge-popup masks with optimal-transport binarization, in PyTorch."""

from . import measures
from .binarizers import BINARIZERS
from .gradients import LATENT_GRADIENTS, SCORE_GRADIENTS
from .masks import MASKS, global_score_masks, score_mask
from .methods import METHODS, Method
from .models import MODELS, create_model
from .scales import SCALES
from .transport import binarize
from .weights import bake_weights, binarize_weights, binary_layers, binary_weights, find_nan

__version__ = "0.1.0"

__all__ = [
    "BINARIZERS",
    "LATENT_GRADIENTS",
    "MASKS",
    "METHODS",
    "MODELS",
    "SCALES",
    "SCORE_GRADIENTS",
    "Method",
    "bake_weights",
    "binarize",
    "binarize_weights",
    "binary_layers",
    "binary_weights",
    "create_model",
    "find_nan",
    "global_score_masks",
    "measures",
    "score_mask",
]

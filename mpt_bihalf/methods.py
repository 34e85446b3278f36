"""Methods: what is trained, which mask, which binarizer, which scale, which gradient. A method is their composition."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import binarizers, masks
from .activation_modules import ACTIVATIONS, Activation
from .activations import ACTIVATION_GRADIENTS, Estimator
from .binarizers import Binarizer
from .devices import autocast
from .gradients import LATENT_GRADIENTS, SCORE_GRADIENTS, Gradient, xnor
from .layer import Layer
from .masks import MaskRule
from .penalties import PENALTIES, Penalty
from .rotation import Rotation
from .scales import SCALES, Scale, scale_of, takes_weight
from .transport import transported


@dataclass(frozen=True)
class Method:
    """How a layer's weight comes to be. Compose your own from the parts, or `dataclasses.replace` one of `METHODS`.

    trains: `weights` (W), `scores` (S, over frozen W), or `signs` (b itself, kept in the place of W, flipped by
        `bop.Bop`).
    binarizer: (layer, mask) -> bool in the shape of W, True = +1, False = -1; None leaves W as it is (dense).
    mask: layer -> bool in the shape of W, True = kept; None keeps all. With `trains="scores"` one that looks at the
        scores.
    scale: (layer, mask) -> positive alpha that broadcasts over W, or (layer, mask, positive), which sees the signs. One
        of the form of before, (weight, mask), does for this version, with a warning.
    latent_gradient, score_gradient: (g, layer, positive, alpha) -> gradient of W, or of S.
    scoped: whether `scope` says what the mask ranks within.
    balanced: whether `p_pos` sets the bit ratio.
    activation_gradient: the estimator, or entry of `ACTIVATIONS`, that goes with it where activations are binary too.
    penalty: (weight, alpha, mask) -> what is added to the loss of each layer, where W is trained (`StepRules`).
    output_scale: which of `OUTPUT_SCALES` goes with the method where activations are binary too; `none`.
    before: W -> a module; what that makes of W is binarized in its place, and what mask and scale see (`Rotation`).
    clip_weights: whether latent weights are clipped to [-1, 1] after each step (`StepRules`).
    """

    name: str
    trains: Literal["weights", "scores", "signs"]
    binarizer: Binarizer | None
    mask: MaskRule | None = None
    scale: Scale = SCALES["kaiming"]
    latent_gradient: Gradient = LATENT_GRADIENTS["scaled"]
    score_gradient: Gradient = SCORE_GRADIENTS["latent"]
    scoped: bool = False
    balanced: bool = False
    activation_gradient: Estimator | Activation = ACTIVATION_GRADIENTS["clip"]
    penalty: Penalty | None = None
    output_scale: str = "none"
    before: Callable[[Tensor], nn.Module] | None = None
    clip_weights: bool = False

    def __post_init__(self) -> None:
        if self.trains not in ("weights", "scores", "signs"):
            raise ValueError(f"a method trains 'weights', 'scores' or 'signs', not {self.trains!r}")
        if self.trains == "scores" and (self.mask is None or self.binarizer is None):
            raise ValueError(f"method {self.name!r} trains scores: it needs a mask rule and a binarizer")
        if self.trains != "scores" and self.mask in (masks.edge_popup, masks.balanced):
            raise ValueError(f"method {self.name!r} trains {self.trains}: its mask rule needs scores")
        if self.binarizer is None and (self.mask is not None or self.trains == "signs"):
            raise ValueError(f"method {self.name!r} needs a binarizer")
        if self.before is not None and (self.trains != "weights" or self.binarizer is None):
            raise ValueError(
                f"method {self.name!r} trains no latent weights: there is nothing for a module before them"
            )
        if self.penalty is not None and (self.trains != "weights" or self.binarizer is None):
            raise ValueError(f"method {self.name!r} trains no latent weights: it can have no penalty on them")
        if (
            self.trains == "weights"
            and self.latent_gradient is xnor
            and not (self.binarizer is binarizers.sign and self.scale is SCALES["l1-filter"])
        ):
            raise ValueError(
                f"method {self.name!r}: the gradient xnor is exact under the binarizer sign and the scale l1-filter "
                "alone; take clipped with others"
            )
        if takes_weight(self.scale):
            warnings.warn(
                f"method {self.name!r}: a scale takes (layer, mask), and its first argument is called layer; "
                "that of a weight will go",
                FutureWarning,
                stacklevel=_caller(),
            )

    @property
    def gradient(self) -> Gradient:
        """The rule for what this method trains."""
        return self.score_gradient if self.trains == "scores" else self.latent_gradient

    def decide(self, layer: Layer, mask: Tensor | None = None) -> tuple[Tensor | None, Tensor, Tensor]:
        """What is kept (None: all), where the sign is +1, both bool in the shape of W, and alpha.

        mask: what to keep in the place of what the method would keep.
        """
        assert self.binarizer is not None
        # Mixed precision is for the layers: what is kept, its sign and its scale are not decided in fewer digits.
        with autocast(layer.weight.device, None):
            mask = layer.kept = self.kept(layer, mask)
            positive = self._bool(self.binarizer, self.binarizer(layer, mask), layer)
            return mask, positive, scale_of(self.scale, layer, mask, positive)

    def kept(self, layer: Layer, mask: Tensor | None = None) -> Tensor | None:
        """What is kept of the layer, bool in the shape of W; None: all. mask: what to keep in the place of that."""
        if mask is not None or self.mask is None:
            return mask
        return self._bool(self.mask, self.mask(layer), layer)

    def _bool(self, part: Any, given: Any, layer: Layer) -> Tensor:
        """What a mask rule or binarizer gave. ValueError for anything but bool in the shape of W."""
        if isinstance(given, Tensor) and given.dtype == torch.bool and given.shape == layer.weight.shape:
            return given
        told = f"{given.dtype} {[*given.shape]}" if isinstance(given, Tensor) else type(given).__name__
        name = getattr(part, "__name__", repr(part))
        wanted = f"bool {[*layer.weight.shape]}, True where a weight is +1, or kept"
        raise ValueError(f"{name} of method {self.name!r} gives {told}, and is to give {wanted}")


_L1 = SCALES["l1-filter"]
_RBNN: dict[str, Any] = {
    "scale": SCALES["learned-l1-filter"],
    "latent_gradient": LATENT_GRADIENTS["rbnn"],
    "activation_gradient": ACTIVATIONS["rbnn"],
    "before": Rotation,
}
_BI_REAL: dict[str, Any] = {"activation_gradient": ACTIVATION_GRADIENTS["approx"]}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "weights", binarizer=None),
        Method("sign", "weights", binarizers.sign),
        Method(
            "irnet",
            "weights",
            binarizers.standardised_sign,
            scale=SCALES["power-of-two"],
            latent_gradient=LATENT_GRADIENTS["ede"],
            activation_gradient=ACTIVATION_GRADIENTS["ede"],
        ),
        Method("bop", "signs", binarizers.sign),
        Method("bihalf", "weights", transported, balanced=True),
        Method("xnor", "weights", binarizers.sign, scale=_L1, latent_gradient=LATENT_GRADIENTS["xnor"]),
        Method(
            "bi-real",
            "weights",
            binarizers.sign,
            scale=_L1,
            latent_gradient=LATENT_GRADIENTS["clipped"],
            **_BI_REAL,
        ),
        Method(
            "least-squares",
            "weights",
            binarizers.sign,
            scale=SCALES["least-squares"],
            latent_gradient=LATENT_GRADIENTS["clipped-closed"],
        ),
        Method(
            "abc",
            "weights",
            binarizers.centred_sign,
            scale=SCALES["least-squares"],
            activation_gradient=ACTIVATION_GRADIENTS["abc"],
        ),
        Method(
            "bnn+",
            "weights",
            binarizers.sign,
            scale=SCALES["learned-median"],
            latent_gradient=LATENT_GRADIENTS["swish"],
            activation_gradient=ACTIVATION_GRADIENTS["swish"],
            penalty=PENALTIES["r1"],
        ),
        Method(
            "xnor++",
            "weights",
            binarizers.sign,
            scale=SCALES["learned"],
            latent_gradient=LATENT_GRADIENTS["clipped-closed"],
            output_scale="gamma-4",
        ),
        Method("rbnn", "weights", binarizers.sign, **_RBNN),
        Method("rbnn-bihalf", "weights", transported, balanced=True, **_RBNN),
        Method(
            "real-to-binary",
            "weights",
            binarizers.sign,
            scale=SCALES["one"],
            latent_gradient=LATENT_GRADIENTS["clipped-closed"],
            clip_weights=True,
        ),
        Method("mpt-sign", "scores", binarizers.sign, masks.edge_popup, SCALES["l1"], scoped=True, **_BI_REAL),
        Method("mpt-bihalf", "scores", transported, masks.edge_popup, scoped=True, balanced=True, **_BI_REAL),
        Method("mpt-balanced", "scores", binarizers.fixed, masks.balanced, balanced=True, **_BI_REAL),
        Method("magnitude-sign", "weights", binarizers.sign, masks.magnitude),
        Method("magnitude-bihalf", "weights", binarizers.extremes, masks.extremes, balanced=True),
    )
}


# Those of the package, whatever else is registered.
BUILT_IN = dict(METHODS)


def _caller() -> int:
    """How far up the stack from `__post_init__` a method is made, `dataclasses.replace` left out."""
    level, frame = 3, sys._getframe(3)  # beyond this function, `__post_init__` and `__init__`
    while frame.f_back and frame.f_code.co_filename == dataclasses.__file__:
        level, frame = level + 1, frame.f_back
    return level


def find_method(method: str | Method) -> Method:
    """The method of this name, or the given one itself; ValueError with the known names otherwise."""
    if isinstance(method, Method):
        return method
    try:
        return METHODS[method]
    except (KeyError, TypeError):
        raise ValueError(
            f"unknown method {method!r}; known: {', '.join(METHODS)}; one of your own comes by --plugin"
        ) from None

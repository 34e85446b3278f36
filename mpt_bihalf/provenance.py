"""What a state dictionary says of the method that it was made under: a tensor, as all else in it."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .binarizers import BINARIZERS
from .counts import as_fraction
from .devices import HOST
from .masks import MASKS
from .scales import SCALES

if TYPE_CHECKING:
    from .parametrization import BinaryWeight

EXTRA_STATE = "_extra_state"  # as torch calls it in a state dictionary
OWN = " (not of this package)"
REMEDIES = {
    "prune_rate": "binarize with that rate, or set_prune_rate first",
    "p_pos": "binarize with that prior",
    "scope": "binarize with that scope",
}


@dataclass(frozen=True)
class Provenance:
    """What the weights in use depend on beside the tensors. None where the method makes no use of it.

    method: its name, for messages; what counts is what it trains and its parts, by name.
    prune_rate: the one in force, and what `binarize_weights` was `given`; p_pos: each as an exact fraction, "3/10".
    fixed_mask: "given" where `fix_masks` gave one. scale_on: where the scale is, `weight` in states of before.

    In the tensor a sum of all it says stands beside it, which an average of states that say different things lacks.
    """

    method: str
    trains: str
    mask: str | None
    binarizer: str
    scale: str
    prune_rate: str | None
    given_prune_rate: str | None
    p_pos: str | None
    scope: str | None
    fixed_mask: str | None = None
    scale_on: str = "weight"

    @classmethod
    def of(cls, part: BinaryWeight) -> Provenance:
        """Of a layer's parametrization."""
        method = part.method
        parts = _name(method.mask, MASKS), _name(method.binarizer, BINARIZERS), _name(method.scale, SCALES)
        # Of parts of the user's own it is not known what they look at.
        known = all(name is None or not name.endswith(OWN) for name in parts)
        mask, binarizer, scale = parts
        return cls(
            method.name,
            method.trains,
            mask,
            binarizer,
            scale,
            None if mask is None else str(as_fraction(part.prune_rate)),
            None if mask is None else str(as_fraction(part.given_prune_rate)),
            str(as_fraction(part.p_pos)) if method.balanced or not known else None,
            part.scope if method.scoped or not known else None,
            None if part.fixed_mask is None else "given",
            part.scale_on,
        )

    def to_tensor(self) -> Tensor:
        """The bytes of its JSON form, on the host, as float32: averages and casts of whole states change none."""
        told = asdict(self)
        told["check"] = _sum(told)
        return torch.tensor([*json.dumps(told).encode()], dtype=torch.float32, device=HOST)

    @classmethod
    def from_tensor(cls, state: Any) -> Provenance:
        """The counterpart of `to_tensor`. ValueError for anything else."""
        try:
            told = json.loads(bytes(state.detach().to("cpu", torch.float64).round().int().tolist()))
            if told.pop("check") != _sum(told):
                raise ValueError("of another sum")
            names = cls.__dataclass_fields__
            found = cls(**{name: value for name, value in told.items() if name in names})
            if not all(value is None or isinstance(value, str) for value in asdict(found).values()):
                raise ValueError("not of text")
            for value in (found.prune_rate, found.given_prune_rate, found.p_pos):
                Fraction(value or 0)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as fault:
            raise ValueError(
                "the state dictionary says nothing readable of the method that it was made under"
            ) from fault
        return found

    def difference(self, stored: Provenance) -> str:
        """Why a state made under `stored` gives other weights here, in one line; empty where it does not."""
        for part in ("trains", "mask", "binarizer", "scale"):
            theirs, ours = getattr(stored, part), getattr(self, part)
            if theirs != ours:
                another = f" with another {part}, {ours} for {theirs}" if stored.method == self.method else ""
                made = f"the state dictionary was made under method {stored.method!r}"
                return f"{made}, and this model is under {self.method!r}{another}: binarize with what made it"
        if stored.fixed_mask != self.fixed_mask:
            if self.fixed_mask:
                return "the state dictionary was made without fixed masks, and this model has some: take one without"
            return "the state dictionary was made with fixed masks, and this model has none: call fix_masks first"
        for setting, remedy in REMEDIES.items():
            theirs, ours = getattr(stored, setting), getattr(self, setting)
            as_given = setting == "prune_rate" and stored.given_prune_rate == self.given_prune_rate
            if theirs != ours and not as_given:
                made, here = _plain(theirs), _plain(ours)
                return f"the state dictionary was made with {setting} {made}, and this model has {here}: {remedy}"
        return ""


def _sum(told: dict[str, Any]) -> str:
    """Of what is told but the sum itself, fields of other versions too."""
    told = {name: value for name, value in told.items() if name != "check"}
    return f"{zlib.crc32(json.dumps(told, sort_keys=True).encode()):08x}"


def _plain(value: str | None) -> str:
    """A fraction as a decimal, all else as it is."""
    try:
        return f"{float(Fraction(value or '')):g}"
    except ValueError:
        return str(value)


def _name(part: Any, known: dict[str, Any]) -> Any:
    """What a part is called, and whether it is one of the user's own."""
    if part is None:
        return None
    for name, value in known.items():
        if value == part:
            return name
    told = getattr(part, "__qualname__", None) or repr(part)
    return (type(part).__qualname__ if " at 0x" in told else told) + OWN

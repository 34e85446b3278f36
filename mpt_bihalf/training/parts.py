"""The parts of a run that are a user's own, told by their source, so that a change under the old name is noticed."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..activations import ACTIVATION_GRADIENTS
from ..data import DATASETS
from ..files import read_json
from ..gradients import LATENT_GRADIENTS, SCORE_GRADIENTS
from ..methods import BUILT_IN, METHODS
from ..models import find_network
from ..scales import SCALES
from .config import Run

PACKAGE = __name__.partition(".")[0]
DIGITS = 12  # of a digest, in a record
IN_RECORD = "parts"  # the key of environment.json, which is there where a run has parts of a user's own


class OtherParts(ValueError):
    """A part is not what it was when the run was made; the message names it."""


def own_parts(run: Run) -> dict[str, str]:
    """By kind and name each part of the run that the package does not bring, with a digest of its source.

    That is the source of its functions and classes themselves, not of what these call. Empty for most runs.
    """
    method = METHODS.get(run.method)
    parts: dict[str, Any] = {
        f"method {run.method!r}": method,
        f"model {run.model!r}": find_network(run.model),
        f"data {run.data!r}": DATASETS.get(run.data),
        f"scale {run.scale!r}": SCALES.get(run.scale),
        f"latent_gradient {run.latent_gradient!r}": LATENT_GRADIENTS.get(run.latent_gradient),
        f"score_gradient {run.score_gradient!r}": SCORE_GRADIENTS.get(run.score_gradient),
        f"activations {run.activations!r}": ACTIVATION_GRADIENTS.get(run.activations),
    }
    found = {}
    for name, part in parts.items():
        described = [*_described(part)]
        if any(own for _, own in described) or (part is method and part is not BUILT_IN.get(run.method)):
            text = "\n".join(line for line, _ in described)
            found[name] = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:DIGITS]
    return found


def recorded_parts(folder: Path) -> dict[str, str] | None:
    """What `own_parts` gave when the run in this folder was made; None where there is no such record."""
    with suppress(OSError, ValueError, AttributeError):
        told = read_json(folder / "environment.json").get(IN_RECORD, {})
        if isinstance(told, dict) and all(isinstance(digest, str) for digest in told.values()):
            return told
    return None


def changed_parts(run: Run, folder: Path) -> list[str]:
    """The parts of the run, each with its kind, that are not what they were when the run in this folder was made."""
    told = recorded_parts(folder)
    if told is None:
        return []
    now = own_parts(run)
    if not told:  # it may be of a time before parts were told of: only what the package brings is known to be another
        return [name for name in now if name == f"method {run.method!r}" and run.method in BUILT_IN]
    return [name for name in {**told, **now} if told.get(name) != now.get(name)]


def check_parts(run: Run, folder: Path) -> None:
    """OtherParts where the run in this folder would go on with parts that have changed since."""
    changed = changed_parts(run, folder)
    if changed:
        raise OtherParts(
            f"{changed[0]} has changed since the run in {folder} was made: load what it was then, give what it is now "
            "another name, or remove that folder to begin it anew"
        )


def _described(value: Any) -> Iterable[tuple[str, bool]]:
    """Lines that tell what something is, each with whether it is code of the user's own."""
    if isinstance(value, partial):
        yield from _described(value.func)
        for argument in (*value.args, *value.keywords.items()):
            yield from _described(argument)
    elif inspect.isfunction(value) or inspect.isclass(value) or inspect.ismethod(value):
        own = value.__module__.partition(".")[0] != PACKAGE
        source = f"{value.__module__}.{value.__qualname__}"
        if own:
            source = value.__qualname__  # a plugin's module has a name that may be another next time
            with suppress(OSError, TypeError):
                source = inspect.getsource(value)
        yield source, own
    elif is_dataclass(value):
        yield from _described(type(value))
        for field in fields(value):
            yield from _described(getattr(value, field.name))
    elif isinstance(value, tuple):
        for each in value:
            yield from _described(each)
    elif value is None or isinstance(value, str | int | float):
        yield repr(value), False
    else:
        yield from _described(type(value))

"""What a run's folder is called."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import short_data
from ..methods import METHODS

if TYPE_CHECKING:
    from .config import Run

# What a run's result does not depend on, so that it is left out of the hash, and of the name.
WHERE = ("data_root", "workers", "data_digest")
# In bytes: of a folder's name, and of a value in it.
LONGEST, LONGEST_VALUE = 200, 40
# The fields that a name begins with, by their values alone.
FIRST = ("model", "data", "method", "prune_rate", "seed")
# Those that others follow where nothing is said: an optimizer has its momentum, a gradient its sharpness.
FOLLOWED = ("activations", "latent_gradient", "optimizer", "precision", "compile", "mask", "redraw", "augment")


def folder_name(run: Run) -> str:
    """See `Run.name`."""
    masked = METHODS[run.method].mask is not None if run.method in METHODS and not run.mask else run.prune_rate > 0
    head = [
        _cut(run.model),
        *(["w1a1"] if run.activations != "real" else []),
        _cut(short_data(run.data)),
        _cut(run.method),
        *([f"pruned{as_word(run.prune_rate)}"] if masked else []),
        f"seed{run.seed}",
    ]
    others = [f"{name}={_cut(as_word(getattr(run, name)))}" for name in chosen_fields(run) if name not in FIRST]
    room, kept = LONGEST - len("-".join([*head, "and-99-more", run.hash])), 0
    while kept < len(others) and (room := room - len(others[kept]) - 1) >= 0:
        kept += 1
    more = [f"and-{len(others) - kept}-more"] if kept < len(others) else []
    return "-".join([*head, *others[:kept], *more, run.hash])


def folder_within(place: Path, run: Run) -> Path:
    """The folder of a run among those in `place`, whether it is there or not, that of its name, or another whose name
    ends in its hash."""
    folder = place / run.name
    if os.path.lexists(folder):
        return folder
    try:
        other = _by_hash(place, os.stat(place).st_mtime_ns).get(run.hash)
    except OSError:
        other = None
    return place / other if other else folder


@lru_cache(8)
def _by_hash(place: Path, changed: int) -> dict[str, str]:
    """The names of the folders in `place` by what they end in; of several the first. changed: when, last."""
    with os.scandir(place) as entries:
        names = sorted((entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."), reverse=True)
    return {name.rpartition("-")[2]: name for name in names}


def chosen_fields(run: Run) -> list[str]:
    """The fields that the hash depends on and that are not as they would be if they were left out, in order."""
    defaults: dict[str, Any] = {each.name: each.default for each in fields(run)}
    first: dict[str, Any] = {name: getattr(run, name) for name in FIRST if name != "seed"}
    followed = {name: getattr(run, name) for name in FOLLOWED}
    bits = "real" if run.activations == "real" else "binary"  # which is said in any case
    try:
        if run.unregistered:
            raise ValueError
        kind: Any = type(run)
        plain = _left_out(kind, tuple(first.items()), (("activations", bits),))
        usual = _left_out(kind, tuple(first.items()), tuple(followed.items()))
    except ValueError:  # nothing is known of what a part that is not registered here would have
        plain = usual = defaults
    values = {**usual, **{name: plain[name] for name in FOLLOWED}, **{name: defaults[name] for name in FIRST}}
    return [name for name in defaults if name not in WHERE and getattr(run, name) != values[name]]


@lru_cache(1024)
def _left_out(kind: Any, *said: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The values of a run of which only this is said."""
    return vars(kind(**dict(item for some in said for item in some)))


def as_word(value: Any) -> str:
    """A field's value as `--grid` and `--where` take it; nothing is `none`."""
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value) or "none"


def _cut(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:LONGEST_VALUE]

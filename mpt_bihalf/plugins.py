"""Plugins: modules of a user's own that register methods, networks, data sets and their parts when they are imported.

A plugin is the path of a Python file or the name of a module. Installed packages name theirs in the entry points
`mpt_bihalf.plugins`. What is imported is what was asked for, never what a record names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from .endings import one_line
from .files import expanded

GROUP = "mpt_bihalf.plugins"
# How the modules begin that files become.
MODULE_NAME = "mpt_bihalf_plugin_"
# What each was asked for by, and the folder that its modules are looked for in, last of all.
_loaded: dict[str, str] = {}


def load_plugin(plugin: str, folder: str = "") -> None:
    """Import a plugin, once in a process; a sweep's workers, and tasks of Ray, import it too.

    plugin: FILE.py, or a module's name. folder: where modules are looked for beside the usual places; of a file its
    own folder is, so that it finds what lies beside it. Raises ValueError, in one line, for one that is missing, or
    that raises something.
    """
    is_file = plugin.endswith(".py")
    path = expanded(plugin).absolute() if is_file else None
    name = str(path) if path else plugin
    if name in _loaded:
        return
    if path and not path.is_file():
        raise ValueError(f"plugin {plugin}: there is no such file")
    folder = str(path.parent) if path else folder
    added = [folder] if folder and folder not in sys.path else []
    sys.path += added
    try:
        module = _imported_file(path) if path else import_module(plugin)
    except (Exception, SystemExit) as fault:
        for each in added:
            sys.path.remove(each)
        meant = f"; {plugin}.py is a file here" if not path and Path(f"{plugin}.py").is_file() else ""
        raise ValueError(one_line(f"plugin {plugin}: {type(fault).__name__}: {fault}{meant}", 300)) from fault
    _loaded[name] = folder or _root(module)


def load_plugins(plugins: Iterable[tuple[str, str]]) -> None:
    """Those of another process, as its `loaded_plugins` has them, and the installed ones."""
    load_installed()
    for plugin, folder in plugins:
        load_plugin(plugin, folder)


def loaded_plugins() -> list[tuple[str, str]]:
    """The plugins of this process in the order in which they were loaded, each with where its modules are found."""
    return [*_loaded.items()]


@cache
def load_installed() -> None:
    """Import the plugins that installed packages name. ValueError, naming the package, for one that fails."""
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except (Exception, SystemExit) as fault:
            package = entry.dist.name if entry.dist else "an installed package"
            told = f"plugin {entry.value} of {package}: {type(fault).__name__}: {fault}"
            raise ValueError(one_line(told, 300)) from fault


def _imported_file(path: Path) -> ModuleType:
    """The file as a module, under a name that is no other's and can be told from its path."""
    name = f"{MODULE_NAME}{path.stem}_{len(_loaded)}"
    spec = spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _root(module: ModuleType) -> str:
    """The folder that a module was found in by its name; empty where it has no file."""
    if not module.__file__:
        return ""
    levels = module.__name__.count(".") + hasattr(module, "__path__")
    return str(Path(module.__file__).absolute().parents[levels])

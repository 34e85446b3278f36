"""How the pages are built: python -m sphinx -W docs build/docs"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # pictures.py, and the package of this very clone

import mpt_bihalf  # noqa: E402

project = "mpt_bihalf"
release = mpt_bihalf.__version__
project_copyright = ""
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_static"]
html_theme = "furo"
html_title = "mpt_bihalf"
html_show_copyright = html_show_sphinx = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # what docstrings have between single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100


def setup(app: Sphinx) -> None:
    import pictures

    app.connect("builder-inited", lambda app: pictures.draw_all(HERE / "drawn"))
    app.connect("autodoc-process-docstring", list_parameters)


def list_parameters(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make a list of what a docstring says of its parameters, in lines or sentences that begin `name: `."""
    names = "|".join(sorted(parameters_of(thing), key=len, reverse=True))
    if not names:
        return
    told = re.compile(rf"(?:^|(?<=\. )|(?<=\.\) ))((?:{names})(?:, (?:{names}))*): ")
    listed: list[str] = []
    within = False
    for line in lines:
        parts = told.split(line)  # what stands before the first, then name and text in turn
        within = within and bool(line.strip())
        if parts[0] or len(parts) == 1:
            listed.append("    " + parts[0].strip() if within else parts[0])
        for of, text in zip(parts[1::2], parts[2::2], strict=True):
            if not within:
                listed.append("")
            listed.append(f":param {of.replace(', ', ',')}: {text}")  # what stands before a space would be a type
            within = True
    lines[:] = listed


def parameters_of(thing: Any) -> list[str]:
    """The names that a docstring may tell of: parameters, and of a class its fields too."""
    if not (inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismethod(thing)):
        return []
    call = thing.__init__ if inspect.isclass(thing) else thing
    return [*inspect.signature(call).parameters, *getattr(thing, "__annotations__", {})]

"""How the pages are built: python -m sphinx -W docs build/docs"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode, math, math_block
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # pictures.py, and the package of this very clone

import mpt_bihalf  # noqa: E402

project = "mpt_bihalf"
release = mpt_bihalf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_static"]
html_theme = "furo"
html_static_path = html_css_files = ["style.css"]
html_title = "mpt_bihalf"
html_math_renderer = "mathml"
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
    app.add_html_math_renderer("mathml", (draw_formula, None), (draw_formula, None))


def draw_formula(translator: HTML5Translator, node: math | math_block) -> None:
    """MathML, which browsers draw by themselves: the pages need no script and no network."""
    translator.body.append(convert(node.astext(), display="block" if isinstance(node, math_block) else "inline"))
    raise SkipNode


def list_parameters(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make a list of what a docstring says of its parameters: lines, or sentences in one, that begin `name: `.

    It ends with the paragraph, or where a sentence says what is returned or raised.
    """
    names = "|".join(parameters_of(thing))
    begins = r"(?:^|(?<=[.;] )|(?<=\.\) ))"
    told = re.compile(rf"{begins}(?=(?:(?:{names})(?:, (?:{names}))*: )|(?:Returns|Raises|Yields) )")
    listed: list[str] = []
    within = False
    for line in lines:
        within = within and bool(line)
        for part in filter(None, told.split(line)) if names and line else [line]:
            begun = re.match(rf"((?:{names})(?:, (?:{names}))*): ", part) if names else None
            if begun:
                listed += [] if within else [""]
                of = begun[1].replace(", ", ",")  # what stands before a space would be a type
                listed.append(f":param {of}: {part[begun.end() :].rstrip('; ')}")
                within = True
            elif within and told.match(part):
                listed += ["", part]
                within = False
            else:
                listed.append("    " + part.strip() if within else part)
    lines[:] = listed


def parameters_of(thing: Any) -> list[str]:
    """The names that a docstring may tell of: parameters, and of a class its fields too."""
    if not (inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismethod(thing)):
        return []
    call = thing.__init__ if inspect.isclass(thing) else thing
    return [*inspect.signature(call).parameters, *getattr(thing, "__annotations__", {})]

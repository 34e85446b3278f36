"""Runs a notebook from top to bottom, without a kernel: run.py NOTEBOOK. What it printed and drew, as JSON."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import nbformat
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell


class Shell(InteractiveShell):
    """One that has no window to draw in."""

    def enable_gui(self, gui: str | None = None) -> None: ...


os.chdir(os.path.dirname(sys.argv[1]))
shell: Any = Shell.instance()
shell.display_pub = CapturingDisplayPublisher()
shell.display_trap.hook = CapturingDisplayHook(shell, shell.display_pub.outputs)
printed = StringIO()
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if cell.cell_type == "code":
        with redirect_stdout(printed):
            shell.run_cell(cell.source).raise_error()
figures = sum("image/png" in output["data"] for output in shell.display_pub.outputs)
print(json.dumps({"printed": printed.getvalue(), "figures": figures}))

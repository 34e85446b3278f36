"""From a typed dataclass to a command line."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import simple_parsing
from simple_parsing.helpers.custom_actions import BooleanOptionalAction

from .endings import fail, show
from .files import expanded
from .plugins import load_installed, load_plugin

Options = TypeVar("Options", bound=Any)


class Parser(simple_parsing.ArgumentParser):
    """Options with dashes and flat names, never abbreviated; errors as one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=_Help,
            allow_abbrev=False,
            add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
            argument_generation_mode=simple_parsing.ArgumentGenerationMode.FLAT,
            **settings,
        )
        self.add_argument(
            "--plugin",
            action="append",
            metavar="PLUGIN",
            help="FILE.py or a module of your own that registers methods, networks or data sets; may be said again",
        )

    def parse_known_args(self, args: Any = None, *further: Any, **settings: Any) -> Any:
        for argument in sys.argv[1:] if args is None else args:
            if argument.startswith("--") and argument.endswith("=--"):
                self.error(f"argument {argument[:-3]}: expected a value")  # argparse would drop the two dashes
        _load_plugins(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, *further, **settings)

    def _preprocessing(self, *args: Any, **kwargs: Any) -> None:
        super()._preprocessing(*args, **kwargs)
        for action in self._actions:
            if action.nargs == "*":
                action.nargs = "+"
            # `int | None` means it may be left out, not left empty.
            if action.nargs == "?" and action.const is None and not isinstance(action, BooleanOptionalAction):
                action.nargs = None

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:  # the help, and so a full or closed output is told as that of any command
            show(message.rstrip("\n"))

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def _load_plugins(arguments: Sequence[str]) -> None:
    """Load the plugins that these arguments name, before anything is looked up by a name that they may register."""
    load_installed()
    before = ""
    for argument in arguments:
        if before == "--plugin":
            load_plugin(argument)
        elif argument.startswith("--plugin="):
            load_plugin(argument.partition("=")[2])
        before = argument


class _Help(argparse.HelpFormatter):
    """Each option's default after its help, where there is one to tell; a plain word for its value."""

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading.split(" [")[0] if heading else heading)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").rstrip()
        untold: tuple[Any, ...] = (None, argparse.SUPPRESS, "", [], ())
        if action.default in untold or "%(default)" in text:
            return text
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else "%(default)s"
        return f"{text} (default: {default})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rsplit(".", 1)[-1].upper()

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs in ("*", "+") or isinstance(action.metavar, tuple):
            return f"{default_metavar} ..."
        action.metavar = None
        return super()._format_args(action, default_metavar)


def parse(options: type[Options], description: str, arguments: list[str] | None = None) -> Options:
    """The options as the command line gives them; a bad one ends the program with one line and exit status 2."""
    parser = Parser(description=description)
    parser.add_arguments(options, dest="options")
    return parser.parse_args(arguments).options


def words(entries: list[str]) -> list[str]:
    """The entries of an option that takes several, given with spaces or with commas."""
    return [word for entry in entries for word in entry.split(",")]


def path_argument(text: str) -> Path:
    """The path that an argument gives, for a parser, which tells where it cannot be."""
    try:
        return expanded(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(str(fault)) from None


def curves_command(folder: Path) -> str:
    """What to type to see the TensorBoard curves below this folder."""
    return shlex.join([sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)])

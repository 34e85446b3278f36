"""From a typed dataclass to a command line, and from an error to one line and exit status 2."""

from __future__ import annotations

import argparse
import os
import select
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import simple_parsing
from simple_parsing.helpers.custom_actions import BooleanOptionalAction

from .distributed import PartFailed, first_to_tell, lead
from .signals import raise_when_terminated

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

    def parse_known_args(self, args: Any = None, *further: Any, **settings: Any) -> Any:
        for argument in sys.argv[1:] if args is None else args:
            if argument.startswith("--") and argument.endswith("=--"):
                self.error(f"argument {argument[:-3]}: expected a value")  # argparse would drop the two dashes
        return super().parse_known_args(args, *further, **settings)

    def _preprocessing(self, *args: Any, **kwargs: Any) -> None:
        super()._preprocessing(*args, **kwargs)
        for action in self._actions:
            if action.nargs == "*":
                action.nargs = "+"
            if (
                action.nargs == "?" and action.const is None and not isinstance(action, BooleanOptionalAction)
            ):  # `int | None` means it may be left out, not left empty
                action.nargs = None

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


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


class CommandFailed(Exception):
    """A command could not do all that it was asked for, by no fault of who asked: one line and exit status 1."""


def fail(message: str, status: int = 2) -> NoReturn:
    """One line on standard error, and the exit status, 2 for what a user can mend."""
    print("error: " + one_line(message, 2000), file=sys.stderr)
    sys.exit(status)


def one_line(text: object, longest: int = 200) -> str:
    """Foreign text as a line may show it: without line breaks or anything else that would steer the terminal."""
    text = str(text)[: 10 * longest]
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def parse(options: type[Options], description: str, arguments: list[str] | None = None) -> Options:
    """The options as the command line gives them; a bad one ends the program with one line and exit status 2."""
    parser = Parser(description=description)
    parser.add_arguments(options, dest="options")
    return parser.parse_args(arguments).options


def curves_command(folder: Path) -> str:
    """What to type to see the TensorBoard curves below this folder."""
    return shlex.join([sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)])


def run_command(command: Callable[[], object]) -> None:
    """Run a command; what a user can mend ends it in one line and exit status 2, a signal with 128 and its number."""
    if sys.stderr is None:  # closed by who started it: what is told goes nowhere, and into no file either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    try:
        with raise_when_terminated():
            lead(command)
        sys.stdout.flush()
    except (CommandFailed, PartFailed) as fault:
        fail(str(fault), status=1)
    except KeyboardInterrupt as stop:
        if first_to_tell():
            print(f"interrupted: {str(stop) or 'the same command goes on from here'}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signum", signal.SIGINT))
    except (ValueError, OSError) as fault:
        if isinstance(fault, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
            sys.exit(1)
        fail(str(fault))


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has seen enough and is gone."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))

"""From a typed dataclass to a command line, and from an error to one line and exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import simple_parsing

Options = TypeVar("Options")


class Parser(simple_parsing.ArgumentParser):
    """Options with dashes, flat names, no abbreviations; errors as one line."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(
            *args,
            **kwargs,
            allow_abbrev=False,
            add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
            argument_generation_mode=simple_parsing.ArgumentGenerationMode.FLAT,
        )

    def _preprocessing(self, *args: object, **kwargs: object) -> None:
        super()._preprocessing(*args, **kwargs)
        for action in self._actions:
            if action.nargs == "?" and action.const is None:  # `int | None` means it may be left out, not left empty
                action.nargs = None

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def fail(message: str) -> NoReturn:
    """One line on standard error, exit status 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def parse(options: type[Options], description: str, arguments: list[str] | None = None) -> Options:
    """The options as the command line gives them; a bad one ends the program with one line and exit status 2."""
    parser = Parser(description=description)
    parser.add_arguments(options, dest="options")
    return parser.parse_args(arguments).options


def run_command(command: Callable[[], object]) -> None:
    """Run a command; what a user can mend ends it with one line and exit status 2, an interrupt with 130."""
    try:
        command()
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as fault:
        fail(str(fault))

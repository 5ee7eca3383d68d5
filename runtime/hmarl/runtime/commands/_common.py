"""What the runtime's command-line programs share: options that the environment may set, and errors."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from hmarl.runtime.commands._output import ERRORS
from hmarl.runtime.errors import HmarlError
from hmarl.runtime.output import print_anything

LOG_LEVELS = ("debug", "info", "warning", "error")
_LAST_WORDS_S = 2.0


class Parser(argparse.ArgumentParser):
    """An argument parser whose options the environment may set too: ``--max-sessions`` from HMARL_MAX_SESSIONS."""

    def option(self, name: str, **settings: Any) -> None:
        """Add an option (or, without dashes, a positional argument) that an environment variable may set."""
        variable = "HMARL_" + name.lstrip("-").upper().replace("-", "_")
        settings["help"] = f"{settings['help']} [{variable}]"
        value = os.environ.get(variable)
        if value is not None:
            settings["default"] = value
            settings.pop("required", None)
            if not name.startswith("-"):
                settings["nargs"] = "?"
            self._check_choice(variable, value, settings.get("choices"))
        self.add_argument(name, **settings)

    def _check_choice(self, variable: str, value: str, choices: Sequence[str] | None) -> None:
        # argparse checks choices on the command line only.
        if choices is not None and value not in choices:
            self.error(f"{variable}: got '{value}', expected one of {', '.join(choices)}")


def positive(text: str) -> float:
    """A number above 0, for ``type=``."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, expected a number above 0")
    return value


def positive_integer(text: str) -> int:
    """An integer above 0, for ``type=``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected an integer above 0")
    return value


def run(program: str, command: Callable[[], int]) -> int:
    """Run a command; an error is one line on standard error, after the traceback when HMARL_DEBUG is 1.

    Returns:
        The exit code: 0 done, 2 bad usage, 3 bad bundle, 4 runtime failure, 130 interrupted.
    """
    print_anything()
    try:
        return command()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("HMARL_DEBUG") == "1":
            ERRORS.put(traceback.format_exc())
        message = str(error) if isinstance(error, HmarlError) else f"{type(error).__name__}: {error}"
        ERRORS.put(f"{program}: error: {message}")
        ERRORS.flush(_LAST_WORDS_S)
        return error.exit_code if isinstance(error, HmarlError) else HmarlError.exit_code

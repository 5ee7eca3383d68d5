"""What all command-line programs of the SDK share: settings, exit codes, JSON output."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import typer

from hmarl.runtime.output import print_anything
from hmarl.sdk.errors import UsageError, did_you_mean

EXIT_USAGE = 2
EXIT_FAILURE = 4
EXIT_INTERRUPTED = 130


def parse_settings(pairs: Iterable[str] | None, prefixes: Sequence[str] = ("env",)) -> dict[str, dict[str, Any]]:
    """Read repeated ``--set PREFIX.KEY=VALUE`` options.

    Args:
        pairs: the options' values, e.g. ``["env.N=5", "env.continuous=true"]``. A value is read as JSON where that is
            possible, else taken as text; the last of several settings of one key wins.
        prefixes: the prefixes that are allowed.

    Returns:
        One dictionary per prefix (empty where nothing was set): ``{"env": {"N": 5, "continuous": True}}``. A key keeps
        any further dots: ``env.a.b=1`` is ``{"env": {"a.b": 1}}``.

    Raises:
        UsageError: not of the form PREFIX.KEY=VALUE, or an unknown prefix.
    """
    settings: dict[str, dict[str, Any]] = {prefix: {} for prefix in prefixes}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        prefix, dot, key = name.strip().partition(".")
        if not (equals and dot and key):
            example = (
                f"{prefixes[0]}.{pair.strip()}" if equals and prefix and text and not dot else f"{prefixes[0]}.KEY=1"
            )
            known = ", ".join(prefixes)
            raise UsageError(f"--set: got '{pair}', expected PREFIX.KEY=VALUE (PREFIX: {known}), e.g. {example}")
        if prefix not in settings:
            hint = did_you_mean(prefix, prefixes, f".{key}")
            known = ", ".join(f"{known}.*" for known in prefixes)
            raise UsageError(f"--set: unknown prefix '{prefix}' in '{pair}'{hint} (known: {known})")
        settings[prefix][key] = _value(text)
    return settings


def _value(text: str) -> Any:
    """JSON where possible; Python's spellings of the constants too, which users type by habit."""
    try:
        return {"True": True, "False": False, "None": None}[text]
    except KeyError:
        pass
    try:
        return json.loads(text)
    except ValueError:
        return text


def print_json(document: Any) -> None:
    """Print one JSON object as one line of standard output, NumPy values included.

    Non-finite numbers, which JSON does not know, become null; where standard output cannot hold a character, all that
    are not ASCII are escaped.
    """
    sys.stdout.flush()
    content = _plain(document)
    text = json.dumps(content, allow_nan=False, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(content, allow_nan=False)
    print(text, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def run_command(function: Callable[..., Any], arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one Typer-annotated function as a whole command-line program and leave the process.

    Exit codes: 0 done, 2 bad usage, 3 bad bundle or checkpoint, 4 runtime failure (also any unforeseen error),
    130 interrupted. An error is one line on standard error, never a traceback; with HMARL_DEBUG=1 in the environment
    the error is raised as it is.

    Args:
        function: the command, its parameters annotated with ``typer.Option`` and ``typer.Argument``.
        arguments: the command line without the program's name; ``sys.argv`` when None.

    Raises:
        SystemExit: always.
    """
    print_anything()
    # Rich's markup mode would draw boxes around wrong usage, wrapped at 80 columns in a pipe as well.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(_guarded(function))
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except typer.Abort:
        _leave("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        # What Typer finds wrong with the command line; errors of the command itself are dealt with by now.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        _leave(f"{describe().rstrip('.')}; see --help", EXIT_USAGE)
    sys.exit(code if isinstance(code, int) else 0)


def _guarded(function: Callable[..., Any]) -> Callable[..., None]:
    """The function with every error turned into a message and an exit code; Typer still sees its signature."""

    @functools.wraps(function)
    def run(*positional: Any, **named: Any) -> None:
        try:
            function(*positional, **named)
        except KeyboardInterrupt:
            _leave("interrupted", EXIT_INTERRUPTED)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except SystemExit as error:
            place = _foreign_exit(error)
            if place is None:
                raise
            _leave(f"the environment called sys.exit({error.code!r}) ({place})", EXIT_FAILURE)
        except Exception as error:
            if os.environ.get("HMARL_DEBUG") == "1":
                raise
            _leave(*_explained(error))

    return run


def _foreign_exit(error: SystemExit) -> str | None:
    """FILE:LINE where code that is not hmarl's called ``sys.exit``; None where it was our own."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals.get("__package__") or ""
    return None if package.split(".")[0] == "hmarl" else f"{frame.f_code.co_filename}:{line}"


def _explained(error: Exception) -> tuple[str, int]:
    """Message and exit code of an error; what was noted on its way (``add_note``) follows its own words."""
    message, code = _own_words(error)
    return "; ".join((message, *getattr(error, "__notes__", ()))), code


def _own_words(error: Exception) -> tuple[str, int]:
    # The runtime's own errors carry their exit code too, but share no base class with the SDK's.
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return str(error), code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", EXIT_FAILURE
    return f"{type(error).__name__}: {error} (HMARL_DEBUG=1 shows where)", EXIT_FAILURE


def _leave(message: str, code: int) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(code)

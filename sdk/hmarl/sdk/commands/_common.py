"""What the command-line programs share that make environments: settings, JSON output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import numpy as np

from hmarl.runtime import command_line
from hmarl.runtime.command_line import Command, Kind, option
from hmarl.runtime.plain_json import read_json
from hmarl.sdk.environments.own_modules import current_folder, own_modules
from hmarl.sdk.errors import UsageError, did_you_mean


def _which(text: str) -> str:
    if text not in ("best", "last") and not text.isdecimal():
        raise ValueError
    return text


CHECKPOINT = Kind("WHICH", "best, last or a number of steps", _which, ("best", "last"))
"""Which checkpoint of a run."""


def run(program: Command, arguments: Sequence[str] | None = None) -> int:
    """Run a program that may use an environment of the user's own.

    Args:
        program: what ``command`` made.
        arguments: the command line without the program's name; ``sys.argv`` when None.

    Returns:
        The exit code.
    """
    with own_modules(current_folder()):
        return command_line.run(program, arguments)


def settings_option(shown: str, about: str) -> click.Option:
    """``--set``, for ``parse_settings``; the function's parameter is ``settings``."""
    return option("--set", f"{about}; repeatable", many=True, shown=shown, parameter="settings")


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
        return read_json(text)
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

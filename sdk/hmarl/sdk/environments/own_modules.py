"""Modules that the user has written, in the current folder of the commands.

The folder is no place where Python looks for whatever is imported, until the user names a module that lies there and
nowhere else: a stranger may have filled it, and even what comes last on ``sys.path`` hides packages that have no
``__init__.py``, such as ``google``, and brings entry points.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import find_spec

_folders: list[str] = []  # the innermost last


def current_folder() -> str | None:
    """The current folder; None where it has been deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


@contextmanager
def own_modules(folder: str | None) -> Iterator[None]:
    """What the user names is found in a folder, after everything that is installed.

    Args:
        folder: which; None for no other than Python's own.
    """
    if folder is None:
        yield
        return
    there = folder in sys.path
    _folders.append(folder)
    try:
        yield
    finally:
        _folders.pop()
        if not there and folder in sys.path:
            sys.path.remove(folder)


def own_folder() -> str | None:
    """The folder in which the user's modules are found; None where it is not looked at."""
    return _folders[-1] if _folders else None


def named(path: str) -> str:
    """Let Python find a module that the user has named.

    Args:
        path: ``package.module:name``.

    Returns:
        The path.
    """
    top = path.partition(":")[0].partition(".")[0]
    folder = own_folder()
    wanted = folder is not None and folder not in sys.path and not _is_there(top)
    if folder is not None and wanted and PathFinder.find_spec(top, [folder]) is not None:
        sys.path.append(folder)
    return path


def _is_there(top: str) -> bool:
    try:
        return find_spec(top) is not None
    except ValueError:  # no name, or one of a module that came from nowhere
        return top in sys.modules

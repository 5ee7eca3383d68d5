"""Starting Python from a program: the current folder's files are not its modules.

A console script does not look for modules in the current folder, but ``python -m`` and ``python -c`` look there first,
before the standard library. Whoever serves or evaluates a bundle does so where a stranger's files may lie.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SAFE_PATH = "PYTHONSAFEPATH"


def python(*words: str) -> list[str]:
    """The command line of another process of this interpreter.

    Args:
        words: the interpreter's, such as ``-m`` and a module, then the program's.
    """
    return [sys.executable, "-P", *words]


@contextmanager
def safe_path() -> Iterator[None]:
    """The same for the interpreters that a library starts meanwhile, whose command line is not ours."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SAFE_PATH, None)
        else:
            os.environ[_SAFE_PATH] = before

"""Where commands take teams from: what a path is, and environments that a stranger's bundle names."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hmarl.sdk.errors import UsageError

# Any text with a colon inside may be an import path: Python takes almost anything for a module's name.
_IMPORT_PATH = re.compile(r".+:.+", re.DOTALL)
_INTERPRETER = "python"  # the argument that names a program to run the environment


def kind_of(path: Path) -> str | None:
    """The option that a path looks made for, judged by the files that are there."""
    if (path / "manifest.json").is_file() or (path.is_file() and zipfile.is_zipfile(path)):
        return "bundle"
    if (path / "config.json").is_file():
        return "run"
    return "endpoints" if path.is_file() and path.suffix == ".json" else None


def refuse_code(name: str, arguments: Mapping[str, Any]) -> None:
    """A bundle, or a process that serves one, must not choose what is imported and called here; its user may.

    Raises:
        UsageError: the environment's name, or an argument, is the path of a function or class, or of a program.
    """
    advice = "which would be imported and called here; if you trust it, say so with"
    if ":" in name:
        raise UsageError(f"the team was trained in '{name[:200]}', {advice} --env {shlex.quote(name[:200])}")
    for key, value in arguments.items():
        if key == _INTERPRETER or any(map(_IMPORT_PATH.fullmatch, _texts(value))):
            same = shlex.quote(f"env.{key}={value if isinstance(value, str) else json.dumps(value)}"[:200])
            raise UsageError(f"the team's environment has env.{key}={str(value)[:200]}, {advice} --set {same}")


def _texts(value: Any) -> Iterator[str]:
    """All texts in an argument, in JSON's lists and objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from (str(key), *_texts(part))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)

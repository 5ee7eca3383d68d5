"""Settings in TOML files. TOML has no null, and its tables are names with dots: such values are JSON in a text."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from hmarl.runtime.plain_json import read_json
from hmarl.sdk.errors import UsageError

_JSON = "json:"


def toml_key(name: str) -> str:
    """A name as it can stand before an equals sign; dots are part of it."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_text(name)


def toml_text(text: str) -> str:
    """A text in TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # all other escapes are JSON's


def toml_setting(value: Any) -> str:
    """A setting's value in TOML, so that ``setting_of`` makes the same of it."""
    if not _has_words(value):
        return toml_text(_JSON + json.dumps(value, ensure_ascii=False))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_setting(each) for each in value) + "]"
    return toml_text(value) if isinstance(value, str) else json.dumps(value)


def _has_words(value: Any) -> bool:
    """Whether TOML says it as it is."""
    if isinstance(value, list | tuple):
        return all(map(_has_words, value))
    if isinstance(value, str):
        return not value.startswith(_JSON)
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def setting_of(value: Any, where: str) -> Any:
    """What a value in a TOML file says: texts that begin with ``json:`` are JSON, also in lists.

    Args:
        value: as TOML has it.
        where: it stands, for the message.

    Raises:
        UsageError: no JSON behind ``json:``.
    """
    if isinstance(value, dict):
        return {key: setting_of(each, f"{where}.{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [setting_of(each, f"{where}[{at}]") for at, each in enumerate(value)]
    if not isinstance(value, str) or not value.startswith(_JSON):
        return value
    try:
        return read_json(value.removeprefix(_JSON))
    except ValueError as error:
        raise UsageError(
            f"{where}: got '{value}', expected JSON behind '{_JSON}', e.g. '{_JSON}null' ({error})"
        ) from error

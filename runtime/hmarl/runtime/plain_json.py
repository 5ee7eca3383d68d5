"""JSON that others wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def read_json(
    content: str | bytes,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    constant: Callable[[str], Any] | None = None,
) -> Any:
    """What a document says.

    Args:
        content: the document; bytes are UTF-8.
        pairs: makes an object of its keys and values; by default a dictionary.
        constant: makes something of NaN and the infinities; by default a float.

    Raises:
        ValueError: it is no JSON, or lies deeper than can be read.
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("lists or objects lie too deep in each other") from error

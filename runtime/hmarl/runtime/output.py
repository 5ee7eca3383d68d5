"""What commands print reaches every terminal, pipe and log file, whatever characters those can hold."""

from __future__ import annotations

import codecs
import io
import os
import sys

PLAIN_LETTERS = "hmarl-plain"  # an error handler for str.encode
_PLAIN = {
    "±": "+-",
    "…": "...",
    "·": "|",  # between figures; products have ⋅
    "⋅": "*",
    "−": "-",
    "–": "-",
    "→": "->",
    "←": "<-",
    "≥": ">=",
    "≤": "<=",
    "×": "x",
    "‖": "||",
    "µ": "u",
    "λ": "lambda",
    "✓": "v",
    "✗": "x",
}


def print_anything() -> None:
    """Let standard output and standard error write what their encoding lacks in plain letters instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None without a terminal, and tests put other things there
            stream.reconfigure(errors=PLAIN_LETTERS)


def quieten_grpc(told: str = "NONE") -> None:
    """Keep gRPC's core from writing to standard error, amid what is shown or logged there; before gRPC is imported.

    It writes from threads of its own, also of what is no fault: a server has closed an idle connection. It looks when
    it is imported, and never again.

    Args:
        told: the least that is, ``ERROR`` or nothing at all; ``GRPC_VERBOSITY`` in the environment comes first.
    """
    os.environ.setdefault("GRPC_VERBOSITY", told)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """The error handler: ASCII for what could not be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_plain(each) for each in error.object[error.start : error.end]), error.end


def _plain(character: str) -> str:
    """The nearest in ASCII: é is e, λ is lambda; else the code point."""
    if character in _PLAIN:
        return _PLAIN[character]
    import unicodedata  # noqa: PLC0415 - an agent that never needs its tables never loads them

    plain = "".join(each for each in unicodedata.normalize("NFKD", character) if each.isascii())
    if plain:
        return plain
    name = unicodedata.name(character, "").split()
    if name[:1] == ["GREEK"]:
        return name[-1].lower()
    return character.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(PLAIN_LETTERS, _plainly)

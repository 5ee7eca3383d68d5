"""A notebook as a page: its text, its code, and what came out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

SHELL = "%%bash"


def notebook_page(notebook: Mapping[str, Any]) -> str:
    """The Markdown of a notebook (format 4), with its pictures inside.

    Raises:
        ValueError: a cell of code has not been run, or ended with an error.
    """
    return "\n\n".join(part.rstrip("\n") for cell in notebook["cells"] for part in _parts(cell)) + "\n"


def _parts(cell: Mapping[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        yield source
        return
    if cell["execution_count"] is None:
        raise ValueError(f"got a cell that has not been run, expected its outputs: {source.splitlines()[0]}")
    magic, _, commands = source.partition("\n")
    yield _fenced("sh", commands) if magic.startswith(SHELL) else _fenced("python", source)
    for output in _joined(cell["outputs"]):
        yield _output(output, cell["metadata"].get("alt", "what the code shows"))


def _joined(outputs: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The outputs with what was written to one stream in one piece: a kernel cuts it anywhere, also within a line."""
    for stream, pieces in groupby(outputs, lambda output: output.get("name")):
        if stream is None:
            yield from pieces
        else:
            yield {"output_type": "stream", "text": ["".join("".join(piece["text"]) for piece in pieces)]}


def _output(output: Mapping[str, Any], alt: str) -> str:
    """One output; ``alt`` of the cell's metadata says what a picture shows to those who do not see it."""
    if output["output_type"] == "error":
        raise ValueError(f"got a cell that ended with {output['ename']}: {output['evalue']}")
    if output["output_type"] == "stream":
        return _fenced("text", "".join(output["text"]))
    data = output["data"]
    if "image/png" in data:
        return f"![{alt}](data:image/png;base64,{''.join(''.join(data['image/png']).split())})"
    return _fenced("text", "".join(data["text/plain"]))


def _fenced(language: str, text: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"

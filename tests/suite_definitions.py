"""Suite files as their tests write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmarl.sdk.errors import UsageError
from hmarl.trainer.suite.definition import Definition, read_definition


def defined(folder: Path, text: str) -> Definition:
    """What a file with this text asks for."""
    path = folder / "mine.toml"
    path.write_text(text)
    return read_definition(path)


def refusal(folder: Path, text: str) -> str:
    """What is said of a file that is refused, on one line."""
    with pytest.raises(UsageError) as caught:
        defined(folder, text)
    return "; ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])

"""What an algorithm says of its metrics."""

from __future__ import annotations


def given(*advice: str | None) -> list[str]:
    """All that there is to say; None where there is nothing."""
    return [each for each in advice if each is not None]

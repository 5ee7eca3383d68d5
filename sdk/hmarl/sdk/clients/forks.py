"""How often this process is a fork of one that could have had clients."""

from __future__ import annotations

import os


class Forks:
    """Counts them.

    Attributes:
        count: how many there have been.
    """

    def __init__(self) -> None:
        self.count = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._note)

    def _note(self) -> None:
        self.count += 1


FORKS = Forks()

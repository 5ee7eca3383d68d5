"""The algorithms, one file each; adding one is a file and a line here."""

from __future__ import annotations

import difflib

from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms.happo import Happo
from hmarl.trainer.algorithms.hatrpo import Hatrpo
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.heterogeneous import HeterogeneousAgents

ALGORITHMS: dict[str, type[HeterogeneousAgents]] = {"happo": Happo, "hatrpo": Hatrpo, "hcpo": Hcpo}


def find_algorithm(name: str) -> type[HeterogeneousAgents]:
    """The algorithm's class.

    Raises:
        UsageError: unknown name, with a suggestion.
    """
    if name not in ALGORITHMS:
        close = difflib.get_close_matches(name.lower(), ALGORITHMS, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UsageError(f"unknown algorithm '{name}'{hint} (known: {', '.join(sorted(ALGORITHMS))})")
    return ALGORITHMS[name]

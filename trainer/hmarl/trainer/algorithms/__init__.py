"""The algorithms, one file each; adding one is a file and a line here."""

from __future__ import annotations

from hmarl.sdk.errors import UsageError, unknown_name
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
        raise UsageError(unknown_name("algorithm", name, ALGORITHMS))
    return ALGORITHMS[name]

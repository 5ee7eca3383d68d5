"""The algorithms, one file each; adding one is a file and a line here."""

from __future__ import annotations

from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.trainer.algorithm import Algorithm
from hmarl.trainer.algorithms.a2po import A2po
from hmarl.trainer.algorithms.haa2c import Haa2c
from hmarl.trainer.algorithms.hamdpo import Hamdpo
from hmarl.trainer.algorithms.happo import Happo
from hmarl.trainer.algorithms.hatrpo import Hatrpo
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.algorithms.ippo import Ippo
from hmarl.trainer.algorithms.mappo import Mappo
from hmarl.trainer.algorithms.maven import Maven

ALGORITHMS: dict[str, type[Algorithm]] = {
    "a2po": A2po,
    "haa2c": Haa2c,
    "hamdpo": Hamdpo,
    "happo": Happo,
    "hatrpo": Hatrpo,
    "hcpo": Hcpo,
    "ippo": Ippo,
    "mappo": Mappo,
    "maven": Maven,
}


def find_algorithm(name: str) -> type[Algorithm]:
    """The algorithm's class.

    Raises:
        UsageError: unknown name, with a suggestion.
    """
    if name not in ALGORITHMS:
        raise UsageError(unknown_name("algorithm", name, ALGORITHMS))
    return ALGORITHMS[name]

"""The algorithms, one file each; adding one is a file and a line here."""

from __future__ import annotations

from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.trainer.algorithms.a2po import A2po
from hmarl.trainer.algorithms.ctds import Ctds
from hmarl.trainer.algorithms.guided_hcpo import GuidedHcpo
from hmarl.trainer.algorithms.haa2c import Haa2c
from hmarl.trainer.algorithms.hamdpo import Hamdpo
from hmarl.trainer.algorithms.happo import Happo
from hmarl.trainer.algorithms.hatrpo import Hatrpo
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.algorithms.himpo import Himpo
from hmarl.trainer.algorithms.ippo import Ippo
from hmarl.trainer.algorithms.magpo import Magpo
from hmarl.trainer.algorithms.mappo import Mappo
from hmarl.trainer.algorithms.mat import Mat
from hmarl.trainer.algorithms.maven import Maven
from hmarl.trainer.algorithms.sable import Sable
from hmarl.trainer.contract.algorithm import Algorithm

ALGORITHMS: dict[str, type[Algorithm]] = {
    "a2po": A2po,
    "ctds": Ctds,
    "guided-hcpo": GuidedHcpo,
    "haa2c": Haa2c,
    "hamdpo": Hamdpo,
    "happo": Happo,
    "hatrpo": Hatrpo,
    "hcpo": Hcpo,
    "himpo": Himpo,
    "ippo": Ippo,
    "magpo": Magpo,
    "mappo": Mappo,
    "mat": Mat,
    "maven": Maven,
    "sable": Sable,
}


def find_algorithm(name: str) -> type[Algorithm]:
    """The algorithm's class.

    Raises:
        UsageError: unknown name, with a suggestion.
    """
    if name not in ALGORITHMS:
        raise UsageError(unknown_name("algorithm", name, ALGORITHMS))
    return ALGORITHMS[name]

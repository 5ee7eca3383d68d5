"""The algorithms, one file each; adding one is a file and a line here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from hmarl.sdk.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from hmarl.trainer.contract.algorithm import Algorithm

# Name: class. The file is called after the name.
_CLASSES = {
    "a2po": "A2po",
    "ctds": "Ctds",
    "guided-hcpo": "GuidedHcpo",
    "haa2c": "Haa2c",
    "hamdpo": "Hamdpo",
    "happo": "Happo",
    "hasac": "Hasac",
    "hatrpo": "Hatrpo",
    "hcpo": "Hcpo",
    "himpo": "Himpo",
    "ippo": "Ippo",
    "magpo": "Magpo",
    "mappo": "Mappo",
    "mat": "Mat",
    "maven": "Maven",
    "qmix": "Qmix",
    "sable": "Sable",
    "vdn": "Vdn",
}


class _Algorithms(Mapping[str, "type[Algorithm]"]):
    """The classes by name; a file is imported when its class is asked for, so that names cost no PyTorch."""

    def __getitem__(self, name: str) -> type[Algorithm]:
        class_name = _CLASSES[name]
        found: type[Algorithm] = getattr(import_module(f"{__name__}.{name.replace('-', '_')}"), class_name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES


ALGORITHMS: Mapping[str, type[Algorithm]] = _Algorithms()


def check_algorithm(name: str) -> None:
    """Refuse a name that is no algorithm's.

    Raises:
        UsageError: with a suggestion.
    """
    if name not in ALGORITHMS:
        raise UsageError(unknown_name("algorithm", name, ALGORITHMS))


def find_algorithm(name: str) -> type[Algorithm]:
    """The algorithm's class.

    Raises:
        UsageError: unknown name, with a suggestion.
    """
    check_algorithm(name)
    return ALGORITHMS[name]

"""The rungs, from what was trained to what is served under faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import Team

CENTRAL, LOCAL, ONNX, SERVED = "central", "local", "onnx", "served"


@dataclass(frozen=True)
class Rung:
    """One way to play the same episodes.

    Attributes:
        name: see ``RungResult``.
        title: who plays, in words.
        make_team: for the environment's spec; the team is closed once it has played.
        faults: what goes wrong on purpose, as ``--faults`` spells it; empty where nothing does.
    """

    name: str
    title: str
    make_team: Callable[[EnvironmentSpec], Team]
    faults: str = ""


def faulted_name(faults: str) -> str:
    """What the rung under these faults is called."""
    return f"{SERVED}, {faults}"

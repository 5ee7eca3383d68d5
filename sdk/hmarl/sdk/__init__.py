"""The hmarl SDK: what programs import. ``from hmarl.sdk import AgentClient, Hold, evaluate, make_environment``.

A name is looked up where it lives when it is first asked for, so that a program pays only for what it uses: a client
loads neither ONNX Runtime nor Gymnasium.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hmarl.sdk import _moved

if TYPE_CHECKING:
    from hmarl.runtime.bundle import Bundle, load_bundle
    from hmarl.runtime.choices import InstructionChoice
    from hmarl.sdk.clients.agent import Action, Agent, AgentStatistics
    from hmarl.sdk.clients.async_client import AsyncAgentClient
    from hmarl.sdk.clients.client import AgentClient
    from hmarl.sdk.clients.endpoints import load_endpoints
    from hmarl.sdk.clients.local_agent import LocalAgent
    from hmarl.sdk.clients.together import reset_together
    from hmarl.sdk.environment import VECTORISED, CopyCost, Observation, StepResult, VectorEnvironment
    from hmarl.sdk.environments import make as make_environment
    from hmarl.sdk.environments.conformance import CheckResult, check_environment
    from hmarl.sdk.errors import (
        AgentError,
        BundleError,
        EnvironmentFault,
        HmarlError,
        MissingExtraError,
        MisuseError,
        ObservationError,
        OtherBundleError,
        StaleActionError,
        UsageError,
    )
    from hmarl.sdk.evaluation.closed_loop import Evaluation, evaluate
    from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
    from hmarl.sdk.fallback import Call, Fail, Fallback, Hold, NoOp, Situation, Zero
    from hmarl.sdk.spaces import AgentGroup, AgentSpec, EnvironmentSpec
    from hmarl.sdk.team import RandomTeam, Team

__all__ = [
    "VECTORISED",
    "Action",
    "Agent",
    "AgentClient",
    "AgentError",
    "AgentGroup",
    "AgentSpec",
    "AgentStatistics",
    "AsyncAgentClient",
    "Bundle",
    "BundleError",
    "BundleTeam",
    "Call",
    "CheckResult",
    "CopyCost",
    "EnvironmentFault",
    "EnvironmentSpec",
    "Evaluation",
    "Fail",
    "Fallback",
    "FleetTeam",
    "HmarlError",
    "Hold",
    "InstructionChoice",
    "LocalAgent",
    "MissingExtraError",
    "MisuseError",
    "NoOp",
    "Observation",
    "ObservationError",
    "OtherBundleError",
    "RandomTeam",
    "Situation",
    "StaleActionError",
    "StepResult",
    "Team",
    "UsageError",
    "VectorEnvironment",
    "Zero",
    "check_environment",
    "evaluate",
    "load_bundle",
    "load_endpoints",
    "make_environment",
    "reset_together",
]

# The same imports once more, for when a name is asked for.
_HOMES = {
    "hmarl.runtime.bundle": ("Bundle", "load_bundle"),
    "hmarl.runtime.choices": ("InstructionChoice",),
    "hmarl.sdk.clients.agent": ("Action", "Agent", "AgentStatistics"),
    "hmarl.sdk.clients.async_client": ("AsyncAgentClient",),
    "hmarl.sdk.clients.client": ("AgentClient",),
    "hmarl.sdk.clients.endpoints": ("load_endpoints",),
    "hmarl.sdk.fallback": ("Call", "Fail", "Fallback", "Hold", "NoOp", "Situation", "Zero"),
    "hmarl.sdk.clients.local_agent": ("LocalAgent",),
    "hmarl.sdk.clients.together": ("reset_together",),
    "hmarl.sdk.environment": ("VECTORISED", "CopyCost", "Observation", "StepResult", "VectorEnvironment"),
    "hmarl.sdk.environments": ("make_environment",),
    "hmarl.sdk.environments.conformance": ("CheckResult", "check_environment"),
    "hmarl.sdk.errors": (
        "AgentError",
        "BundleError",
        "EnvironmentFault",
        "HmarlError",
        "MissingExtraError",
        "MisuseError",
        "ObservationError",
        "OtherBundleError",
        "StaleActionError",
        "UsageError",
    ),
    "hmarl.sdk.evaluation.closed_loop": ("Evaluation", "evaluate"),
    "hmarl.sdk.evaluation.deployed_teams": ("BundleTeam", "FleetTeam"),
    "hmarl.sdk.spaces": ("AgentGroup", "AgentSpec", "EnvironmentSpec"),
    "hmarl.sdk.team": ("RandomTeam", "Team"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_CALLED_THERE = {"make_environment": "make"}

if not TYPE_CHECKING:  # to a type checker, a name that is not imported above is a mistake

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        value = getattr(importlib.import_module(home), _CALLED_THERE.get(name, name))
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return list(__all__)


_moved.register(__all__)

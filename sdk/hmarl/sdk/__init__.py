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
    from hmarl.runtime.recording.settings import RecordSettings
    from hmarl.runtime.tracing import start_tracing
    from hmarl.sdk.clients.agent import Action, Agent, AgentStatistics
    from hmarl.sdk.clients.async_client import AsyncAgentClient
    from hmarl.sdk.clients.call_metadata import request_id
    from hmarl.sdk.clients.client import AgentClient
    from hmarl.sdk.clients.client_metrics import ClientMetrics
    from hmarl.sdk.clients.endpoints import load_endpoints, load_security
    from hmarl.sdk.clients.local_agent import LocalAgent
    from hmarl.sdk.clients.security import Security
    from hmarl.sdk.clients.together import reset_together
    from hmarl.sdk.control.async_loop import AsyncControlLoop
    from hmarl.sdk.control.limits import ActionLimits
    from hmarl.sdk.control.loop import ControlLoop
    from hmarl.sdk.control.statistics import AgentSummary, LoopSummary
    from hmarl.sdk.control.team import Command, StampedObservation
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
        OverrunError,
        SignatureError,
        StaleActionError,
        UsageError,
    )
    from hmarl.sdk.evaluation.closed_loop import Evaluation, evaluate
    from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
    from hmarl.sdk.fallback import Call, Fail, Fallback, Hold, NoOp, Situation, Zero
    from hmarl.sdk.spaces import AgentGroup, AgentSpec, EnvironmentSpec, ImageFormat
    from hmarl.sdk.team import RandomTeam, Team

__all__ = [
    "VECTORISED",
    "Action",
    "ActionLimits",
    "Agent",
    "AgentClient",
    "AgentError",
    "AgentGroup",
    "AgentSpec",
    "AgentStatistics",
    "AgentSummary",
    "AsyncAgentClient",
    "AsyncControlLoop",
    "Bundle",
    "BundleError",
    "BundleTeam",
    "Call",
    "CheckResult",
    "ClientMetrics",
    "Command",
    "ControlLoop",
    "CopyCost",
    "EnvironmentFault",
    "EnvironmentSpec",
    "Evaluation",
    "Fail",
    "Fallback",
    "FleetTeam",
    "HmarlError",
    "Hold",
    "ImageFormat",
    "InstructionChoice",
    "LocalAgent",
    "LoopSummary",
    "MissingExtraError",
    "MisuseError",
    "NoOp",
    "Observation",
    "ObservationError",
    "OtherBundleError",
    "OverrunError",
    "RandomTeam",
    "RecordSettings",
    "Security",
    "SignatureError",
    "Situation",
    "StaleActionError",
    "StampedObservation",
    "StepResult",
    "Team",
    "UsageError",
    "VectorEnvironment",
    "Zero",
    "check_environment",
    "evaluate",
    "load_bundle",
    "load_endpoints",
    "load_security",
    "make_environment",
    "request_id",
    "reset_together",
    "start_tracing",
]

# The same imports once more, for when a name is asked for.
_HOMES = {
    "hmarl.runtime.bundle": ("Bundle", "load_bundle"),
    "hmarl.runtime.choices": ("InstructionChoice",),
    "hmarl.runtime.recording.settings": ("RecordSettings",),
    "hmarl.runtime.tracing": ("start_tracing",),
    "hmarl.sdk.clients.agent": ("Action", "Agent", "AgentStatistics"),
    "hmarl.sdk.clients.async_client": ("AsyncAgentClient",),
    "hmarl.sdk.clients.call_metadata": ("request_id",),
    "hmarl.sdk.clients.client": ("AgentClient",),
    "hmarl.sdk.clients.client_metrics": ("ClientMetrics",),
    "hmarl.sdk.clients.endpoints": ("load_endpoints", "load_security"),
    "hmarl.sdk.fallback": ("Call", "Fail", "Fallback", "Hold", "NoOp", "Situation", "Zero"),
    "hmarl.sdk.clients.local_agent": ("LocalAgent",),
    "hmarl.sdk.clients.security": ("Security",),
    "hmarl.sdk.clients.together": ("reset_together",),
    "hmarl.sdk.control.async_loop": ("AsyncControlLoop",),
    "hmarl.sdk.control.limits": ("ActionLimits",),
    "hmarl.sdk.control.loop": ("ControlLoop",),
    "hmarl.sdk.control.statistics": ("AgentSummary", "LoopSummary"),
    "hmarl.sdk.control.team": ("Command", "StampedObservation"),
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
        "OverrunError",
        "SignatureError",
        "StaleActionError",
        "UsageError",
    ),
    "hmarl.sdk.evaluation.closed_loop": ("Evaluation", "evaluate"),
    "hmarl.sdk.evaluation.deployed_teams": ("BundleTeam", "FleetTeam"),
    "hmarl.sdk.spaces": ("AgentGroup", "AgentSpec", "EnvironmentSpec", "ImageFormat"),
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

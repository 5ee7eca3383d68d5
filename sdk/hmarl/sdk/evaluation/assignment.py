"""Which policy acts for which agent of an environment, also for agents that were not trained."""

from __future__ import annotations

from collections.abc import Mapping

from hmarl.runtime.bundle import AgentModel
from hmarl.sdk.clients.agent import agent_spec, mismatch
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec


def assign(source: str, spec: EnvironmentSpec, models: Mapping[str, AgentModel]) -> dict[str, str]:
    """Find a policy for every agent of an environment: its own, else that of an interchangeable agent that fits.

    Args:
        source: where the policies come from, for messages.
        spec: the environment's spec.
        models: the policies there are, by their agents' ids.

    Returns:
        The policy's agent by the environment's agent; another id than the agent's own is that of a stand-in.

    Raises:
        UsageError: no agent, or several kinds of agents, could act for an agent; names what was got and expected.
    """
    return {agent.id: agent.id if agent.id in models else _stand_in(source, agent, models) for agent in spec.agents}


def _stand_in(source: str, agent: AgentSpec, models: Mapping[str, AgentModel]) -> str:
    """The interchangeable agent whose policy fits an agent that has none of its own."""
    problem = f"{source}: no agent '{agent.id}', which the environment has (there: {', '.join(models)})"
    kinds: dict[str, str] = {}
    for name, model in models.items():
        if model.interchangeable:
            kinds.setdefault(model.file, name)
    if not kinds:
        raise UsageError(f"{problem}, and none of them is interchangeable")
    misfits = {name: mismatch(agent_spec(models[name]), agent) for name in kinds.values()}
    fitting = [name for name, misfit in misfits.items() if misfit is None]
    if not fitting:
        reasons = "; ".join(f"'{name}': {misfit}" for name, misfit in misfits.items())
        raise UsageError(f"{problem}, and no interchangeable one fits: {reasons}")
    if len(fitting) > 1:
        raise UsageError(
            f"{problem}, and it could act like any of {', '.join(fitting)}: say which by serving it, e.g. "
            f"hmarl-fleet BUNDLE --agents {agent.id}={fitting[0]},..."
        )
    return fitting[0]

"""Whether a bundle can take the place of another one while its agents are served: the same agents, the same spaces.

What a client sends and gets stays as it was. Recurrent state, noises and diagnostics may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hmarl.runtime.errors import BundleError, UsageError

if TYPE_CHECKING:
    from hmarl.runtime.bundle import Bundle
    from hmarl.runtime.manifest import AgentModel, TensorModel

_ADVICE = "serve it with a process of its own, by hmarl-agent or hmarl-fleet"


def check_replacement(served: Bundle, wanted: Bundle, roster: Mapping[str, str | None]) -> None:
    """Refuse a bundle of other agents or spaces.

    Args:
        served: the bundle that is served now.
        wanted: the one that shall be.
        roster: the agents that are served, and for those that were not trained, like whom they act.

    Raises:
        BundleError: it does not fit; says in what.
    """
    where = f"bundle {wanted.path}"
    if set(wanted.agent_ids) != set(served.agent_ids):
        raise BundleError(
            f"{where}: agents: got {_listed(wanted.agent_ids)}, expected those of the bundle that is served, "
            f"{_listed(served.agent_ids)}; {_ADVICE}"
        )
    for agent_id, like in roster.items():
        try:
            problem = _difference(served.agent(agent_id, like), wanted.agent(agent_id, like))
        except UsageError as error:  # whom it acts like is not interchangeable any longer
            raise BundleError(f"{where}: {error}") from error
        if problem is not None:
            raise BundleError(f"{where}: agent '{agent_id}': {problem}, as the bundle has that is served; {_ADVICE}")


def _difference(served: AgentModel, wanted: AgentModel) -> str | None:
    """What differs in what clients send and get, if anything."""
    if wanted.action_space != served.action_space:
        return f"action space: got {wanted.action_space}, expected {served.action_space}"
    for name in ("observation", "action", "action_mask"):
        got, expected = _form(getattr(wanted, name)), _form(getattr(served, name))
        if got != expected:
            return f"{name.replace('_', ' ')}: got {got}, expected {expected}"
    return None


def _form(tensor: TensorModel | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {tensor.shape}"


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(sorted(names)[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"

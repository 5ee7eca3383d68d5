"""Numbers of an environment that are NaN or infinite, found where they are seen and named.

A sum is the cheapest test: it is finite unless a number is not, or the numbers are absurdly large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environment import Observation
from hmarl.sdk.errors import EnvironmentFault
from hmarl.sdk.spaces import EnvironmentSpec

When = Callable[[int], str]


def check_observations(
    spec: EnvironmentSpec, observation: Observation, running: npt.NDArray[np.bool_], when: When
) -> None:
    """Refuse what no policy can act on.

    Args:
        spec: of the environments.
        observation: as NumPy arrays; what agents see that have left does not count.
        running: [B] which environments count.
        when: says of an environment when this was.

    Raises:
        EnvironmentFault: names the agent, the number and when it was.
    """
    for group, block in zip(spec.groups, observation.observations, strict=True):
        if _fine(block):
            continue
        there = running[:, None] & observation.active[:, list(group.agents)]
        for row, member, index in np.argwhere(~np.isfinite(block) & there[..., None]):
            agent = spec.agents[group.agents[member]].id
            raise EnvironmentFault(
                f"{spec.name}: the environment's observation of agent '{agent}' is {block[row, member, index]} at "
                f"index {index} ({when(row)}); look for it in the environment"
            )


def check_rewards(spec: EnvironmentSpec, rewards: npt.NDArray[Any], running: npt.NDArray[np.bool_], when: When) -> None:
    """Refuse what no return can be made of.

    Args:
        spec: of the environments.
        rewards: [B, N] of a step.
        running: [B] which environments count.
        when: says of an environment when this was.

    Raises:
        EnvironmentFault: names the agent, the number and when it was.
    """
    if _fine(rewards):
        return
    for row, agent in np.argwhere(~np.isfinite(rewards) & running[:, None]):
        raise EnvironmentFault(
            f"{spec.name}: the environment's reward of agent '{spec.agents[agent].id}' is {rewards[row, agent]} "
            f"({when(row)}); look for it in the environment"
        )


def _fine(block: npt.NDArray[Any]) -> bool:
    if block.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(block.sum()))

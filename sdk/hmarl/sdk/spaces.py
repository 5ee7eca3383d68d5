"""What an environment is: its agents, their spaces, and how the team is rewarded.

The letters used in shapes are defined once, in CONTRIBUTING.md: T steps, B environments, N agents, G groups,
K instructions, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from hmarl.runtime.bundle import check_printable
from hmarl.runtime.inputs import branch_slices
from hmarl.sdk.errors import UsageError

# Discrete is generic in newer versions of Gymnasium only.
ActionSpace = spaces.Discrete | spaces.MultiDiscrete | spaces.Box  # type: ignore[type-arg]
TeamReward = Literal["sum", "mean", "shared"]
# Larger bounds stand for no bounds (numpy.finfo(numpy.float32).max, 1e39): the width between them is not a float32.
LARGEST_BOUND = float(np.finfo(np.float32).max) / 2


def check_bounds(agent: str, space: spaces.Box) -> None:
    """Refuse a Box between whose bounds no policy can be scaled.

    Args:
        agent: the agent's id, for the message.
        space: a Box of actions, of any shape and floating-point type.

    Raises:
        UsageError: a bound is infinite, NaN or beyond ``LARGEST_BOUND`` (float32 then has no number for it, or for the
            range), or the lower one is above the upper one.
    """
    low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high))
    for name, bound in (("low", low), ("high", high)):
        bad = np.flatnonzero(~(np.abs(bound) <= LARGEST_BOUND))
        if bad.size:
            raise UsageError(
                f"agent '{agent}': got the unbounded action space {space}: {name}[{bad[0]}] is {bound[bad[0]]:g}, "
                f"expected bounds within ±{LARGEST_BOUND:.2g}; give the range that the actuator has"
            )
    crossed = np.flatnonzero(low > high)
    if crossed.size:
        where = crossed[0]
        raise UsageError(
            f"agent '{agent}': got the action space {space}: low[{where}] is {low[where]:g} and high[{where}] "
            f"{high[where]:g}, expected low <= high"
        )


def float32_box(agent: str, space: spaces.Box) -> spaces.Box:
    """A Box as policies have it, one-dimensional and of float32, rounded inwards: what lies within lies within
    ``space``.

    Where no float32 lies between a component's bounds, both become the nearest one.

    Raises:
        UsageError: as ``check_bounds``.
    """
    check_bounds(agent, space)
    exact = [np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high)]
    near = [bound.astype(np.float32) for bound in exact]
    low = np.where(near[0] < exact[0], np.nextafter(near[0], np.float32(np.inf)), near[0])
    high = np.where(near[1] > exact[1], np.nextafter(near[1], np.float32(-np.inf)), near[1])
    empty = low > high
    low, high = (np.where(empty, nearest, bound) for nearest, bound in zip(near, (low, high), strict=True))
    return spaces.Box(low, high, dtype=np.float32)


def mask_branches(space: ActionSpace) -> list[slice]:
    """Where each branch of a mask lies: all of it for Discrete, one part per branch for MultiDiscrete."""
    return branch_slices(branch_sizes(space))


def branch_sizes(space: ActionSpace) -> list[int]:
    """The number of choices in each branch; none for continuous actions."""
    if isinstance(space, spaces.MultiDiscrete):
        return [int(size) for size in space.nvec]
    return [int(space.n)] if isinstance(space, spaces.Discrete) else []


def _check_name(field: str, name: str) -> None:
    """Names that a manifest can hold.

    Raises:
        UsageError: it cannot hold this one.
    """
    try:
        check_printable(field, name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _content(space: ActionSpace) -> tuple[object, ...]:
    """All of a space; its text leaves the middle of many bounds out."""
    if isinstance(space, spaces.Box):
        return "box", space.shape, space.low.tobytes(), space.high.tobytes()
    if isinstance(space, spaces.MultiDiscrete):
        return "multi-discrete", tuple(space.nvec.reshape(-1).tolist())
    return "discrete", int(space.n)


@dataclass(frozen=True)
class AgentSpec:
    """One agent as a policy sees it.

    Attributes:
        id: unique name, e.g. ``"agent_0"``; printable characters of any alphabet.
        observation_size: length of the flat float32 observation vector.
        action_space: Discrete(A) (starting at 0), MultiDiscrete (1-D) or a bounded 1-D float32 Box.
        has_action_mask: whether the environment hands out a mask of legal actions (Discrete: bool [A];
            MultiDiscrete: the masks of the branches, concatenated).
        observation_layout: human-readable meaning of the parts of the vector, as (name, length) pairs in order. One
            called ``position`` is where the agent is: algorithms with a graph of agents build it from that.
    """

    id: str
    observation_size: int
    action_space: ActionSpace
    has_action_mask: bool = False
    observation_layout: tuple[tuple[str, int], ...] = ()

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action: () for Discrete, (D,) otherwise."""
        return () if isinstance(self.action_space, spaces.Discrete) else tuple(self.action_space.shape)

    @property
    def action_dtype(self) -> np.dtype[Any]:
        """int64 for Discrete and MultiDiscrete, float32 for Box."""
        return np.dtype(np.float32 if isinstance(self.action_space, spaces.Box) else np.int64)

    @property
    def mask_size(self) -> int:
        """Length of the action mask: A, or the sum over branches; 0 for continuous actions."""
        return sum(branch_sizes(self.action_space))


@dataclass(frozen=True)
class AgentGroup:
    """Agents with equal spaces; their data lie in one block [B, N_group, ...], never padded.

    Attributes:
        agents: positions of the members in ``EnvironmentSpec.agents``, ascending.
        example: the spec that all members share but for the id.
    """

    agents: tuple[int, ...]
    example: AgentSpec


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment as every other part of hmarl sees it.

    Attributes:
        name: the name given to ``make``, e.g. ``"mpe/simple_spread"``.
        agents: all agents that can ever be there, in a fixed order.
        state_size: length of the flat float32 global state.
        horizon: steps after which an episode is cut off, None when unknown.
        team_reward: how the team reward is formed from the agents' rewards: their ``sum`` or ``mean``; ``shared`` means
            that every agent already receives the team reward.
        control_period_s: seconds between two steps in the simulated or real world, None when unknown.
        arguments: the keyword arguments that the environment was made with.
        has_success: whether ``StepResult.success`` is reported.
        horizon_guessed: the horizon was not declared, it was read off an attribute that looks like one. A guess only
            describes, and episodes may last longer.
    """

    name: str
    agents: tuple[AgentSpec, ...]
    state_size: int
    horizon: int | None
    team_reward: TeamReward
    control_period_s: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    has_success: bool = False
    horizon_guessed: bool = False

    def __post_init__(self) -> None:
        ids = [agent.id for agent in self.agents]
        if not ids or len(set(ids)) != len(ids):
            raise UsageError(f"agents: got ids {ids}, expected at least one and no duplicates")
        for index, agent in enumerate(self.agents):
            _check_name(f"agents[{index}].id", agent.id)
            for name, _ in agent.observation_layout:
                _check_name(f"agents[{index}].observation_layout", name)

    @property
    def declared_horizon(self) -> int | None:
        """The horizon that episodes are held to; None when it is unknown or guessed."""
        return None if self.horizon_guessed else self.horizon

    @property
    def agent_ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(agent.id for agent in self.agents)

    @cached_property
    def groups(self) -> tuple[AgentGroup, ...]:
        """Agents with equal observation size, action space and mask, grouped in order of first appearance."""
        members: dict[tuple[object, ...], list[int]] = {}
        for index, agent in enumerate(self.agents):
            key = (agent.observation_size, agent.has_action_mask, *_content(agent.action_space))
            members.setdefault(key, []).append(index)
        return tuple(AgentGroup(tuple(group), self.agents[group[0]]) for group in members.values())

    def team_rewards(self, rewards: np.ndarray) -> np.ndarray:
        """Team reward from the agents' rewards: [..., N] float32 -> [...] float32."""
        if self.team_reward == "sum":
            return np.asarray(rewards.sum(axis=-1))
        return np.asarray(rewards.mean(axis=-1))

"""What an environment is: its agents, their spaces, and how the team is rewarded.

Action spaces have two forms: Gymnasium's, which environments and users know, and the manifest's (``ActionSpaceModel``),
which is plain data. Clients get by with the latter, so that Gymnasium is imported only where one of its spaces is asked
for.

The letters used in shapes are defined once, in CONTRIBUTING.md: T steps, B environments, N agents, G groups,
K instructions, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from hmarl.runtime import manifest
from hmarl.runtime.inputs import branch_slices
from hmarl.runtime.manifest import ActionSpaceModel, BoxSpace, DiscreteSpace, MultiDiscreteSpace, check_printable
from hmarl.sdk.errors import UsageError

if TYPE_CHECKING:
    from gymnasium import spaces

# A string, because Gymnasium is not imported here and has no generic Discrete in old releases.
ActionSpace: TypeAlias = "spaces.Discrete[Any] | spaces.MultiDiscrete | spaces.Box"
TeamReward = Literal["sum", "mean", "shared"]
ImageType = Literal["uint8", "float32"]
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
    from gymnasium import spaces  # noqa: PLC0415 - whoever has one of its spaces has it imported

    check_bounds(agent, space)
    exact = [np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high)]
    near = [bound.astype(np.float32) for bound in exact]
    low = np.where(near[0] < exact[0], np.nextafter(near[0], np.float32(np.inf)), near[0])
    high = np.where(near[1] > exact[1], np.nextafter(near[1], np.float32(-np.inf)), near[1])
    empty = low > high
    low, high = (np.where(empty, nearest, bound) for nearest, bound in zip(near, (low, high), strict=True))
    return spaces.Box(low, high, dtype=np.float32)


def space_model(space: ActionSpace | ActionSpaceModel) -> ActionSpaceModel:
    """An action space as the manifest writes it.

    Raises:
        UsageError: no policy can act in such a space.
    """
    if isinstance(space, ActionSpaceModel):
        return space
    from gymnasium import spaces  # noqa: PLC0415 - whoever has one of its spaces has it imported

    if isinstance(space, spaces.Discrete) and int(space.start) == 0:
        return DiscreteSpace(n=int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and not np.any(space.start):
        return MultiDiscreteSpace(n=[int(size) for size in space.nvec.reshape(-1)])
    if isinstance(space, spaces.Box):
        low, high = (bound.reshape(-1).astype(float).tolist() for bound in (space.low, space.high))
        return BoxSpace(low=low, high=high)
    raise UsageError(f"action space: got {space}, expected Discrete or MultiDiscrete that start at 0, or a bounded Box")


def gymnasium_space(model: ActionSpaceModel) -> ActionSpace:
    """An action space as Gymnasium has it."""
    from gymnasium import spaces  # noqa: PLC0415 - hundreds of modules that a client does without

    if isinstance(model, DiscreteSpace):
        return spaces.Discrete(model.n)
    if isinstance(model, MultiDiscreteSpace):
        return spaces.MultiDiscrete(model.n)
    return spaces.Box(*bounds(model), dtype=np.float32)


def bounds(model: BoxSpace) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Lower and upper bounds of continuous actions, [D] float32 each."""
    return np.asarray(model.low, np.float32), np.asarray(model.high, np.float32)


def action_shape(model: ActionSpaceModel) -> tuple[int, ...]:
    """Shape of one action: () for one choice, (D,) otherwise."""
    if isinstance(model, BoxSpace):
        return (len(model.low),)
    return () if isinstance(model, DiscreteSpace) else (len(model.n),)


class ActionSpaceField:
    """A field of a dataclass that takes either form of an action space and is read in Gymnasium's.

    What was given is kept in the instance; ``given_space`` returns it.
    """

    def __get__(self, instance: object, owner: type | None = None) -> ActionSpace:
        if instance is None:
            raise AttributeError("action_space")  # tells dataclass that there is no default
        given = given_space(instance)
        if isinstance(given, ActionSpaceModel):
            instance.__dict__["_action_space"] = given = gymnasium_space(given)
        return given

    def __set__(self, instance: object, value: ActionSpace | ActionSpaceModel) -> None:
        instance.__dict__["_action_space"] = value


# What a dataclass puts behind the ``=``: a descriptor, not a default; the field has to be given.
ACTION_SPACE_FIELD: Final = ActionSpaceField()


def given_space(instance: object) -> ActionSpace | ActionSpaceModel:
    """The action space of a dataclass with an ``ActionSpaceField``, in the form that it was given in."""
    given: ActionSpace | ActionSpaceModel = instance.__dict__["_action_space"]
    return given


def mask_branches(space: ActionSpace | ActionSpaceModel) -> list[slice]:
    """Where each branch of a mask lies: all of it for Discrete, one part per branch for MultiDiscrete."""
    return branch_slices(branch_sizes(space))


def branch_sizes(space: ActionSpace | ActionSpaceModel) -> list[int]:
    """The number of choices in each branch; none for continuous actions."""
    return manifest.branch_sizes(space_model(space))


def _check_name(field: str, name: str) -> None:
    """Names that a manifest can hold.

    Raises:
        UsageError: it cannot hold this one.
    """
    try:
        check_printable(field, name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _content(model: ActionSpaceModel) -> tuple[object, ...]:
    """All of a space, to be compared and looked up."""
    if isinstance(model, BoxSpace):
        return "box", tuple(model.low), tuple(model.high)
    if isinstance(model, MultiDiscreteSpace):
        return "multi-discrete", tuple(model.n)
    return "discrete", model.n


@dataclass(frozen=True)
class ImageFormat:
    """What numbers of an observation or a state are a picture, row by row, channels last.

    Attributes:
        height, width, channels: 1 or more each.
        dtype: ``uint8``, 0 to 255, or ``float32``.
    """

    height: int
    width: int
    channels: int
    dtype: ImageType = "uint8"

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.dtype not in get_args(ImageType):
            raise UsageError(f"image: got {self}, expected sides of 1 or more and {' or '.join(get_args(ImageType))}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.height} x {self.width} x {self.channels} {self.dtype}"


def _check_image(field: str, image: ImageFormat | None, size: int) -> None:
    """A picture is all of an observation or state.

    Raises:
        UsageError: it has more or fewer numbers.
    """
    if image is not None and image.size != size:
        raise UsageError(f"{field}: got {image}, {image.size} numbers, expected {size}")


@dataclass(frozen=True)
class AgentSpec:
    """One agent as a policy sees it.

    Attributes:
        id: unique name, e.g. ``"agent_0"``; printable characters of any alphabet.
        observation_size: length of the flat observation vector.
        action_space: Discrete(A) (starting at 0), MultiDiscrete (1-D) or a bounded 1-D float32 Box. May be given as the
            manifest writes it; then the space of Gymnasium is made when it is first asked for.
        has_action_mask: whether the environment hands out a mask of legal actions (Discrete: bool [A];
            MultiDiscrete: the masks of the branches, concatenated).
        observation_layout: human-readable meaning of the parts of the vector, as (name, length) pairs in order. One
            called ``position`` is where the agent is: algorithms with a graph of agents build it from that.
        image: the observation is a picture of this format, its numbers row by row; None for a vector of float32.
    """

    id: str
    observation_size: int
    action_space: ActionSpaceField = ACTION_SPACE_FIELD
    has_action_mask: bool = False
    observation_layout: tuple[tuple[str, int], ...] = ()
    image: ImageFormat | None = None

    def __post_init__(self) -> None:
        _check_image(f"agent '{self.id}': image", self.image, self.observation_size)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of what the agent's policy is given: (observation_size,), or (height, width, channels)."""
        return (self.observation_size,) if self.image is None else self.image.shape

    @property
    def observation_dtype(self) -> np.dtype[Any]:
        """float32, or a picture's type."""
        return np.dtype(np.float32 if self.image is None else self.image.dtype)

    def observation_columns(self, part: str) -> range:
        """Where a part of the flat observation stands in it; empty where ``observation_layout`` has none so called."""
        start = 0
        for name, length in self.observation_layout:
            if name == part:
                return range(start, start + length)
            start += length
        return range(0)

    def observed(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Observations [..., observation_size] as the agent's policy is given them: [..., *observation_shape]."""
        shape = (*rows.shape[:-1], *self.observation_shape)
        return np.ascontiguousarray(rows, self.observation_dtype).reshape(shape)

    @cached_property
    def action_space_model(self) -> ActionSpaceModel:
        """The action space as the manifest writes it, for which Gymnasium is not needed.

        Raises:
            UsageError: no policy can act in such a space.
        """
        try:
            return space_model(given_space(self))
        except UsageError as error:
            raise UsageError(f"agent '{self.id}': {error}") from None

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action: () for Discrete, (D,) otherwise."""
        return action_shape(self.action_space_model)

    @property
    def action_dtype(self) -> np.dtype[Any]:
        """int64 for Discrete and MultiDiscrete, float32 for Box."""
        return np.dtype(np.float32 if isinstance(self.action_space_model, BoxSpace) else np.int64)

    @cached_property
    def action_bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Lower and upper bounds of continuous actions, [D] float32 each.

        Raises:
            UsageError: the actions are discrete.
        """
        model = self.action_space_model
        if isinstance(model, BoxSpace):
            return bounds(model)
        raise UsageError(f"agent '{self.id}': got {self.action_space}, expected continuous actions")

    @property
    def mask_size(self) -> int:
        """Length of the action mask: A, or the sum over branches; 0 for continuous actions."""
        return sum(manifest.branch_sizes(self.action_space_model))


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
        state_size: length of the flat global state.
        horizon: steps after which an episode is cut off, None when unknown.
        team_reward: how the team reward is formed from the agents' rewards: their ``sum`` or ``mean`` (those who have
            left earn 0); ``shared`` means that every agent who is there already receives the team reward.
        control_period_s: seconds between two steps in the simulated or real world, None when unknown.
        arguments: the keyword arguments that the environment was made with.
        has_success: whether ``StepResult.success`` is reported.
        common_observations: parts of all agents' observation layouts, by name, that all agents who are there observe
            alike at every step, to the last bit; what a conductor without a message may rely on. None declared: they
            are found in training.
        faults: what goes wrong on purpose, as ``--faults`` spells it (see ``hmarl.sdk.faults``); empty where nothing
            does.
        horizon_guessed: the horizon was not declared, it was read off an attribute that looks like one. A guess only
            describes, and episodes may last longer.
        state_image: the state is a picture of this format; None for a vector of float32.
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
    common_observations: tuple[str, ...] = ()
    faults: str = ""
    state_image: ImageFormat | None = None

    def __post_init__(self) -> None:
        _check_image("state_image", self.state_image, self.state_size)
        ids = [agent.id for agent in self.agents]
        if not ids or len(set(ids)) != len(ids):
            raise UsageError(f"agents: got ids {ids}, expected at least one and no duplicates")
        for index, agent in enumerate(self.agents):
            _check_name(f"agents[{index}].id", agent.id)
            for name, _ in agent.observation_layout:
                _check_name(f"agents[{index}].observation_layout", name)
        for name in self.common_observations:
            lengths = [
                tuple(length for part, length in agent.observation_layout if part == name) for agent in self.agents
            ]
            if not lengths[0] or set(lengths) != {lengths[0]}:
                raise ValueError(
                    f"common_observations: got '{name}', expected a part of one length in every agent's "
                    "observation_layout"
                )

    @property
    def state_dtype(self) -> np.dtype[Any]:
        """float32, or a picture's type."""
        return np.dtype(np.float32 if self.state_image is None else self.state_image.dtype)

    @property
    def images(self) -> tuple[str, ...]:
        """What is a picture, in words, e.g. ``agent 'a' observes 84 x 84 x 3 uint8``."""
        seen = [f"agent '{agent.id}' observes {agent.image}" for agent in self.agents if agent.image is not None]
        return (*seen, *([f"the state is {self.state_image}"] if self.state_image is not None else []))

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
        """Agents with equal observations, action space and mask, grouped in order of first appearance."""
        members: dict[tuple[object, ...], list[int]] = {}
        for index, agent in enumerate(self.agents):
            key = (agent.observation_size, agent.image, agent.has_action_mask, *_content(agent.action_space_model))
            members.setdefault(key, []).append(index)
        return tuple(AgentGroup(tuple(group), self.agents[group[0]]) for group in members.values())

    def team_rewards(self, rewards: Any, active: Any = None) -> Any:
        """Team reward from the agents' rewards, NumPy arrays or tensors: [..., N] -> [...] of the same dtype.

        Args:
            rewards: [..., N] float, 0 for agents who had left before the step.
            active: [..., N] bool, who was there before the step: a shared reward is theirs. None: all were.
        """
        total = rewards.sum(-1)
        if self.team_reward == "sum":
            return total
        if self.team_reward == "mean" or active is None:
            return total / len(self.agents)
        there = active.sum(-1, dtype=rewards.dtype)
        return total / (there + (there == 0))

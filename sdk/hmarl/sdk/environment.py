"""The one interface of all environments: B of them stepped together, arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hmarl.sdk.spaces import EnvironmentSpec

# A NumPy array, a torch tensor where an environment computes in torch, or JAX's array where it lends those; typed as
# Any because the SDK knows neither.
Array = Any


@dataclass(frozen=True)
class Observation:
    """What is seen at one step by all agents of B environments.

    Attributes:
        observations: one array per group: [B, N_group, observation_size] float32; of pictures, row by row, in the type
            that ``AgentSpec.image`` says.
        action_masks: one entry per group: bool [B, N_group, mask_size], or None where the group has no masks.
        state: [B, state_size] float32, or a picture's type.
        active: [B, N] bool; False for an agent that has left, or has not come yet (its observation is then zero, its
            mask all-true): what it remembers stands still.
        restarted: [B, N] bool, agents whose process has been restarted since the step before: what they remembered is
            lost. None where that never happens; see ``hmarl.sdk.faults``.
    """

    observations: tuple[Array, ...]
    action_masks: tuple[Array | None, ...]
    state: Array
    active: Array
    restarted: Array | None = None


def as_array(value: Array) -> npt.NDArray[Any]:
    """A NumPy array that may be written to; a tensor, or JAX's array, is brought home from wherever it lives."""
    array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
    return array if array.flags.writeable else array.copy()


def as_numpy(observation: Observation) -> Observation:
    """The same observation with NumPy arrays, whatever the environment computes in."""
    return Observation(
        observations=tuple(as_array(block) for block in observation.observations),
        action_masks=tuple(None if mask is None else as_array(mask) for mask in observation.action_masks),
        state=as_array(observation.state),
        active=as_array(observation.active),
        restarted=None if observation.restarted is None else as_array(observation.restarted),
    )


@dataclass(frozen=True)
class StepResult:
    """The outcome of one step of B environments.

    Attributes:
        observation: what is seen now; where an episode has just ended, the first observation of the next one.
        rewards: [B, N] float32, per agent; 0 for agents that had left before.
        terminated: [B] bool, the episode ended by its own rules.
        truncated: [B] bool, the episode was cut off (horizon); never true together with ``terminated``.
        final: None when no episode ended at this step; else the observation as it was before auto-reset, of all B
            environments (equal to ``observation`` where no episode ended).
        success: [B] bool for tasks that know success (meaningful where an episode ended), else None.
    """

    observation: Observation
    rewards: Array
    terminated: Array
    truncated: Array
    final: Observation | None
    success: Array | None = None


@dataclass(frozen=True)
class CopyCost:
    """What every further copy of an environment costs. A family's module says it once, as ``COPY_COST``.

    Attributes:
        memory_bytes: of this process and all others together.
        processes: of its own (a simulator), each of which keeps a core busy while its copy is stepped. The worker
            processes that copies are spread over do not count: there are no more of them than cores.
        compiles: the first reset and steps are compiled, which takes a while.
        step_bytes: of what is seen at one step, of which rollouts hold many; 0 where that matters little.
    """

    memory_bytes: int = 0
    processes: int = 0
    compiles: bool = False
    step_bytes: int = 0


# All copies are rows of the same arrays.
VECTORISED = CopyCost()


@runtime_checkable
class VectorEnvironment(Protocol):
    """B independent copies of one task.

    Each copy has a random stream of its own, set by ``reset``; after an episode it resets itself from that stream.
    """

    @property
    def spec(self) -> EnvironmentSpec:
        """The agents, their spaces, and how the team is rewarded."""
        ...

    @property
    def batch_size(self) -> int:
        """B."""
        ...

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes; equal seeds give equal episodes, whatever the batch size.

        Args:
            seeds: [B] int64, each in [0, 2**31).
        """
        ...

    def step(self, actions: tuple[Array, ...]) -> StepResult:
        """Advance every environment by one step.

        Args:
            actions: one array per group, [B, N_group, *action_shape]: int64, or float32 within the Box's bounds. The
                entries of agents that have left are ignored.
        """
        ...

    def get_state(self) -> Mapping[str, npt.NDArray[Any]] | None:
        """Everything that determines the future, random streams included, as arrays; None when not supported."""
        ...

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Restore what ``get_state`` returned; returns the observation at that moment."""
        ...

    def render(self, index: int = 0) -> npt.NDArray[np.uint8] | None:
        """A picture [height, width, 3] of environment ``index``, None when the task cannot be drawn."""
        ...

    def close(self) -> None:
        """Free workers, windows and shared memory; a second call does nothing."""
        ...


@runtime_checkable
class LocatesAgents(Protocol):
    """An environment that knows where its pictures show the agents; optional, for what is drawn over them."""

    def agent_pixels(self, index: int = 0) -> npt.NDArray[np.float64]:
        """Where the agents are in the picture that ``render(index)`` has just returned.

        Returns:
            [N, 3] x and y of each agent's middle and its radius, in pixels from the picture's upper left corner, x to
            the right and y downwards: the agent is drawn at ``picture[int(y), int(x)]``. NaN for agents that are not
            there.
        """
        ...


@dataclass(frozen=True)
class Finding:
    """Something that an environment does against its own interface; play goes on all the same.

    Attributes:
        check: the check of ``hmarl-check-env`` that it belongs to.
        what: what it does.
        count: how often.
        example: the first case.
    """

    check: str
    what: str
    count: int
    example: str


@runtime_checkable
class FindsFaults(Protocol):
    """An environment that looks at the code it wraps, and tells what it puts right or passes over; optional."""

    def findings(self) -> list[Finding]:
        """What has been found since the first call, which begins the watch (it costs time) and finds nothing."""
        ...

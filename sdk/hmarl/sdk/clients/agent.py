"""One agent's policy as a program uses it: the interface that the clients and ``LocalAgent`` share."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from hmarl.runtime.choices import InstructionChoice
from hmarl.runtime.manifest import ActionSpaceModel, AgentModel, BoxSpace, TensorModel
from hmarl.sdk.errors import MisuseError, UsageError
from hmarl.sdk.spaces import AgentSpec, ImageFormat, bounds

# Seconds: 10 µs to 1 s, three to a decade.
LATENCY_BOUNDS_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)


@dataclass(slots=True)
class Action:
    """What an agent does at one step.

    Attributes:
        action: Discrete: an int. MultiDiscrete: int64 [branches]. Box: float32 [D], in the environment's own units;
            finite, but not brought within the bounds. Choices are in range, and legal under the mask that was given.
        step: the step that it belongs to.
        fresh: False when the fallback chose it, because the policy's own action did not arrive in time.
        missed_steps: steps between the observation that the policy saw last and this one that it never received.
        replayed: True when this is the recorded reply of a request that was sent again.
        diagnostics: the policy's further outputs by name; empty when not fresh, and from a client that was not made
            with ``diagnostics=True``.
        latency_s: seconds from the call of ``act`` to its return.
    """

    action: int | npt.NDArray[Any]
    step: int
    fresh: bool
    missed_steps: int
    replayed: bool
    diagnostics: Mapping[str, npt.NDArray[Any]]
    latency_s: float


_COUNTED = ("acts", "fallbacks", "late_replies", "missed_steps", "rejoins", "state_resets", "fresh")


@dataclass
class AgentStatistics:
    """Counters since the agent was made.

    Attributes:
        acts: actions asked for.
        fallbacks: acts without a fresh action, whether the fallback found one or raised.
        late_replies: replies that were dropped because they were taken after the time allowed for their step was over.
            (A unary call that is over its deadline is cancelled by gRPC, so that most of its late replies are never
            seen.)
        missed_steps: steps that the policy reported as never received.
        rejoins: episodes that were rejoined because the server had forgotten the session.
        state_resets: rejoins that lost recurrent state.
        fresh: acts that the policy's own action answered in time.
        fallback_reasons: the fallbacks by what kept a fresh action: the name of a gRPC status code, or ``LATE_REPLY``.
        latency_counts: acts that returned, by how long they took: for each of ``LATENCY_BOUNDS_S`` those that took at
            most so long, and longer than the bound before; then those that took longer than all.
        latency_sum_s: how long they took together.
    """

    acts: int = 0
    fallbacks: int = 0
    late_replies: int = 0
    missed_steps: int = 0
    rejoins: int = 0
    state_resets: int = 0
    fresh: int = 0
    fallback_reasons: Counter[str] = field(default_factory=Counter)
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    latency_sum_s: float = 0.0

    def took(self, latency_s: float) -> float:
        """Count an act that returned after ``latency_s`` seconds, and return them."""
        self.latency_counts[bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1
        self.latency_sum_s += latency_s
        return latency_s

    def add(self, other: AgentStatistics) -> None:
        """Add those of another agent."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.fallback_reasons.update(other.fallback_reasons)
        pairs = zip(self.latency_counts, other.latency_counts, strict=True)
        self.latency_counts = [mine + its for mine, its in pairs]
        self.latency_sum_s += other.latency_sum_s

    def since(self, before: AgentStatistics) -> AgentStatistics:
        """What has been counted since these were as ``before``."""
        pairs = zip(self.latency_counts, before.latency_counts, strict=True)
        return AgentStatistics(
            **{name: getattr(self, name) - getattr(before, name) for name in _COUNTED},
            fallback_reasons=self.fallback_reasons - before.fallback_reasons,
            latency_counts=[now - then for now, then in pairs],
            latency_sum_s=self.latency_sum_s - before.latency_sum_s,
        )


class Agent(Protocol):
    """One agent's policy, in this process or another; one episode at a time, one call at a time."""

    @property
    def spec(self) -> AgentSpec:
        """The agent's id, observation size and spaces."""
        ...

    @property
    def statistics(self) -> AgentStatistics:
        """Counters since the agent was made."""
        ...

    def reset(
        self,
        seed: int,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        first_step: int = 0,
    ) -> None:
        """Start an episode.

        Args:
            seed: the episode's seed in [0, 2**64), the same for all agents of a team.
            sample: False for argmax or mean, True to draw actions.
            instruction_choice: how a policy with instructions chooses them; None: as its bundle says, where it says
                nothing ``common`` when sampling, else ``argmax``.
            first_step: the step of the first observation, above 0 when an episode is joined in the middle.
        """
        ...

    def act(self, observation: npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None = None) -> Action:
        """The action for the next step.

        Args:
            observation: [observation_size] float32, finite; or a picture [height, width, channels] of its own type.
            action_mask: [mask_size] bool, True where legal; exactly when the policy has a mask input.

        Raises:
            ObservationError: wrong shape, dtype or content; the step is not used up.
        """
        ...

    def skip(self, steps: int = 1, *, away: bool = False) -> None:
        """Steps of the episode go by at which this agent is not asked: the next act is for a later step.

        Agents of a team stay in step that way, and what they draw in common stays common.

        Args:
            steps: how many, not negative.
            away: the agent was not in the game in these steps, instead of missing them. Its policy does the same
                either way; faults on purpose (``FaultyAgent``) are those of an agent that has just come.
        """
        ...

    def close(self) -> None:
        """End the episode and free what is held; a second call does nothing."""
        ...


def refuse_copy(thing: object, instead: str) -> NoReturn:
    """What holds a connection or a session is neither copied nor pickled.

    Raises:
        MisuseError: always; says what to do instead.
    """
    raise MisuseError(f"{type(thing).__name__}: got an attempt to copy or pickle it, which is not possible: {instead}")


def agent_spec(model: AgentModel) -> AgentSpec:
    """The spec of an agent from its entry in a bundle's manifest."""
    return AgentSpec(
        id=model.id,
        observation_size=math.prod(model.observation.shape),
        action_space=model.action_space,
        has_action_mask=model.action_mask is not None,
        observation_layout=tuple(model.observation_layout),
        image=_image(model.observation),
    )


def _image(observation: TensorModel) -> ImageFormat | None:
    """What picture an observation is, by the manifest."""
    if len(observation.shape) != 3:
        return None
    height, width, channels = observation.shape
    return ImageFormat(height, width, channels, "uint8" if observation.dtype == "uint8" else "float32")


def check_spec(got: AgentSpec, expected: AgentSpec, source: str) -> None:
    """Make sure that a policy fits the agent that it is to act for.

    A policy with a mask input may act where the environment has no masks (it is then given an all-true one); a policy
    without one may not act where the environment has masks.

    Args:
        got: the policy's spec.
        expected: the environment's.
        source: where the policy comes from, for the message.

    Raises:
        UsageError: names the agent and the field, what was got and what was expected.
    """
    problem = mismatch(got, expected)
    if got.id != expected.id:
        problem = f"id: got {got.id}, the environment expects {expected.id}"
    if problem is not None:
        raise UsageError(f"{source}: agent '{expected.id}': {problem}")


def mismatch(got: AgentSpec, expected: AgentSpec) -> str | None:
    """The first thing, in words, that keeps a policy from acting for an agent, whatever their ids; None if it fits."""
    if got.observation_size != expected.observation_size:
        return f"observation size: got {got.observation_size}, the environment expects {expected.observation_size}"
    if got.image is not None and got.image != expected.image:
        return f"observation: got a policy that sees {got.image}, the environment shows {expected.image or 'vectors'}"
    if not _equal_spaces(got.action_space_model, expected.action_space_model):
        return f"action space: got {got.action_space}, the environment expects {expected.action_space}"
    if expected.has_action_mask and not got.has_action_mask:
        return "action mask: got a policy without a mask input, but the environment has illegal actions"
    return None


def _equal_spaces(first: ActionSpaceModel, second: ActionSpaceModel) -> bool:
    if isinstance(first, BoxSpace) and isinstance(second, BoxSpace):
        # The manifest holds decimal numbers: equal up to float32's precision.
        return len(first.low) == len(second.low) and all(
            np.allclose(ours, theirs, rtol=1e-6, atol=0.0)
            for ours, theirs in zip(bounds(first), bounds(second), strict=True)
        )
    return first == second

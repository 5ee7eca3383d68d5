"""One PettingZoo environment that reads its actions from, and writes what it shows to, one row of flat arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.environments._worker_process import Buffers, Moment, episode_seed
from hmarl.sdk.environments._worker_spaces import MASK_KEY, ObservationFlattener, convert_action_space
from hmarl.sdk.errors import EnvironmentFault, UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec


def buffer_layout(spec: EnvironmentSpec, batch: int) -> list[tuple[str, tuple[int, ...], str]]:
    """The arrays of ``batch`` environments of that spec."""
    boolean, real, integer = "|b1", "<f4", "<i8"
    team = (batch, len(spec.agents))
    layout: list[tuple[str, tuple[int, ...], str]] = [
        ("rewards", team, real),
        ("terminated", (batch,), boolean),
        ("truncated", (batch,), boolean),
        ("success", (batch,), boolean),
        ("at_work", (batch,), boolean),
        ("seeds", (batch,), integer),
    ]
    for moment in ("now", "final"):
        layout += [(f"{moment}.state", (batch, spec.state_size), real), (f"{moment}.active", team, boolean)]
    for index, group in enumerate(spec.groups):
        agent, leading = group.example, (batch, len(group.agents))
        layout.append((f"actions.{index}", (*leading, *agent.action_shape), agent.action_dtype.str))
        for moment in ("now", "final"):
            layout.append((f"{moment}.observations.{index}", (*leading, agent.observation_size), real))
            if agent.has_action_mask:
                layout.append((f"{moment}.masks.{index}", (*leading, agent.mask_size), boolean))
    return layout


class ParallelCopy:
    """One PettingZoo parallel environment behind flat arrays.

    An agent that leaves (its termination or truncation flag is set, or it is missing in ``agents``) is inactive from
    then on: observation zero, mask all true, reward 0; its last reward counts. The episode ends when nobody is left:
    by termination when every agent ended by termination, else by truncation. The next episode starts at once with
    ``episode_seed``. The final observation shows everyone who was still there before the last step, except, when the
    episode was cut off, those that terminated at that step.

    Args:
        environment: a PettingZoo parallel environment; it is reset once here, to find out sizes and masks.
        name: the environment's name in the spec and in messages.

    Attributes:
        spec: agents, spaces and state size; horizon and rewards are filled in by the caller.

    Raises:
        UsageError: a space that cannot be flattened, or not a parallel environment.
    """

    def __init__(self, environment: Any, name: str) -> None:
        self.environment = environment
        self._ids = list(environment.possible_agents)
        self._flatten = {id_: ObservationFlattener(str(id_), environment.observation_space(id_)) for id_ in self._ids}
        converted = {id_: convert_action_space(str(id_), environment.action_space(id_)) for id_ in self._ids}
        self._restore = {id_: restore for id_, (_, restore) in converted.items()}
        _, infos = environment.reset(seed=0)
        agents = tuple(
            AgentSpec(
                id=str(id_),
                observation_size=self._flatten[id_].size,
                action_space=converted[id_][0],
                has_action_mask=not isinstance(converted[id_][0], spaces.Box)
                and (self._flatten[id_].mask_inside or MASK_KEY in infos.get(id_, {})),
                observation_layout=self._flatten[id_].layout,
            )
            for id_ in self._ids
        )
        state = self._own_state()
        self._has_own_state = state is not None
        state_size = sum(agent.observation_size for agent in agents) if state is None else state.size
        self._success = getattr(environment, "episode_success", None)
        has_success = self._success is not None
        self.spec = EnvironmentSpec(name, agents, state_size, None, "sum", has_success=has_success)
        self._places = {
            self._ids[agent]: (group, position)
            for group, members in enumerate(self.spec.groups)
            for position, agent in enumerate(members.agents)
        }
        self._seed, self._episode = 0, 0
        self._present: set[Any] = set()
        self._anyone_cut_off = False

    def reset(self, buffers: Buffers, row: int) -> None:
        """Start an episode from ``buffers.seeds[row]``."""
        self._seed, self._episode = int(buffers.seeds[row]), 0
        self._begin(buffers, row, self._seed)

    def step(self, buffers: Buffers, row: int) -> None:
        """Advance by one step with the actions of ``row``; start anew when the episode has ended."""
        before = self._present
        actions = {id_: self._restore[id_](self._action(buffers, row, id_)) for id_ in self._ids if id_ in before}
        observations, rewards, terminations, truncations, infos = self.environment.step(actions)
        buffers.rewards[row] = [float(rewards.get(id_, 0.0)) if id_ in before else 0.0 for id_ in self._ids]
        remaining = set(self.environment.agents)
        gone = {id_ for id_ in before if id_ not in remaining or terminations.get(id_) or truncations.get(id_)}
        cut_off = {id_ for id_ in gone if truncations.get(id_) and not terminations.get(id_)}
        self._anyone_cut_off |= bool(cut_off)
        self._present = remaining - gone
        ended = not self._present
        buffers.success[row] = self._success is not None and self._success()
        buffers.truncated[row] = ended and self._anyone_cut_off
        buffers.terminated[row] = ended and not self._anyone_cut_off
        if not ended:
            self._show(buffers.now, row, observations, infos, self._present)
            return
        self._show(buffers.final, row, observations, infos, cut_off if self._anyone_cut_off else before)
        self._episode += 1
        self._begin(buffers, row, episode_seed(self._seed, self._episode))

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The environment's picture [height, width, 3], None when it makes none."""
        picture = self.environment.render()
        return np.ascontiguousarray(picture, dtype=np.uint8) if isinstance(picture, np.ndarray) else None

    def close(self) -> None:
        """Close the environment; what fails on the way out no longer matters."""
        with suppress(Exception):
            self.environment.close()

    def _begin(self, buffers: Buffers, row: int, seed: int) -> None:
        observations, infos = self.environment.reset(seed=seed)
        self._present = set(self.environment.agents)
        self._anyone_cut_off = False
        self._show(buffers.now, row, observations, infos, self._present)

    def _action(self, buffers: Buffers, row: int, id_: Any) -> npt.NDArray[Any]:
        group, position = self._places[id_]
        return np.asarray(buffers.actions[group][row, position])

    def _show(
        self,
        target: Moment,
        row: int,
        observations: Mapping[Any, Any],
        infos: Mapping[Any, Any],
        visible: Collection[Any],
    ) -> None:
        """Write one row of ``target``: the visible agents as they are, the others as having left."""
        for index, id_ in enumerate(self._ids):
            group, position = self._places[id_]
            vector, mask = target.observations[group][row, position], target.action_masks[group]
            shown = id_ in visible
            target.active[row, index] = shown
            vector[:] = self._vector(id_, observations) if shown else 0.0
            if mask is not None:
                mask[row, position] = self._mask(id_, observations, infos) if shown else True
        target.state[row] = self._state(target, row)

    def _vector(self, id_: Any, observations: Mapping[Any, Any]) -> npt.NDArray[np.float32] | float:
        if id_ not in observations:
            return 0.0
        vector = self._flatten[id_](observations[id_])
        if vector.size != self._flatten[id_].size:
            expected = self._flatten[id_].size
            raise EnvironmentFault(f"agent '{id_}': got an observation of {vector.size} numbers, expected {expected}")
        return vector

    def _mask(
        self, id_: Any, observations: Mapping[Any, Any], infos: Mapping[Any, Any]
    ) -> npt.NDArray[np.bool_] | bool:
        source = observations.get(id_) if self._flatten[id_].mask_inside else infos.get(id_)
        if source is None or MASK_KEY not in source:
            return True
        mask = source[MASK_KEY]
        parts = mask if isinstance(mask, list | tuple) else [mask]
        legal = np.concatenate([np.asarray(part).reshape(-1) for part in parts]).astype(np.bool_)
        expected = self.spec.agents[self._ids.index(id_)].mask_size
        if legal.size != expected:
            raise EnvironmentFault(f"agent '{id_}': got an action mask of {legal.size} entries, expected {expected}")
        return legal

    def _state(self, target: Moment, row: int) -> npt.NDArray[np.float32]:
        if not self._has_own_state:
            places = [self._places[id_] for id_ in self._ids]
            return np.concatenate([target.observations[group][row, position] for group, position in places])
        state = np.asarray(self.environment.state(), dtype=np.float32).reshape(-1)
        if state.size != self.spec.state_size:
            raise EnvironmentFault(f"state(): got {state.size} numbers, expected {self.spec.state_size}")
        return state

    def _own_state(self) -> npt.NDArray[np.float32] | None:
        """The environment's own global state; None where it has none that is an array of numbers."""
        try:
            return np.asarray(self.environment.state(), dtype=np.float32).reshape(-1)
        except Exception:
            return None


def check_is_parallel(environment: Any, name: str) -> None:
    """Refuse what is no parallel environment.

    Raises:
        UsageError: a turn-based (AEC) environment, or something else altogether.
    """
    if hasattr(environment, "agent_iter"):
        raise UsageError(f"{name}: got a turn-based (AEC) environment, expected a parallel one, e.g. ':parallel_env'")
    missing = [name for name in ("possible_agents", "reset", "step") if not hasattr(environment, name)]
    if missing:
        kind = type(environment).__name__
        raise UsageError(f"{name}: got a {kind} without {', '.join(missing)}, expected a parallel environment")

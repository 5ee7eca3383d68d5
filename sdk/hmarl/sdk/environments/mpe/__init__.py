"""The MPE tasks simple_spread, simple_reference and simple_speaker_listener, batched in NumPy.

A port of the ``mpe2`` package that equals it step for step: the same episodes from the same seeds, the same
observations, rewards, states and ends. It needs neither that package nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environment import VECTORISED, Array, Observation, StepResult, VectorEnvironment
from hmarl.sdk.environments.authoring import (
    COUNT,
    FLAG,
    PROPORTION,
    EpisodeStreams,
    RandomStreams,
    checked_actions,
    checked_state,
    resolve_arguments,
)
from hmarl.sdk.environments.backends import BACKEND_ARGUMENTS, torch_device
from hmarl.sdk.environments.mpe import drawing
from hmarl.sdk.environments.mpe.scenarios import SCENARIOS, Scenario
from hmarl.sdk.environments.mpe.world import TIME_STEP_S
from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.sdk.spaces import EnvironmentSpec

TASKS = list(SCENARIOS)
COPY_COST = VECTORISED


def make(task: str, batch_size: int = 1, **arguments: Any) -> VectorEnvironment:
    """Make B copies of an MPE task.

    Args:
        task: one of ``TASKS``.
        batch_size: B, at least 1.
        arguments: as in mpe2. All tasks: ``max_cycles`` (25; steps until truncation), ``continuous_actions`` (False).
            simple_spread and simple_reference: ``local_ratio`` (0.5; the weight of an agent's own reward against the
            team's). simple_spread: ``N`` (3; agents, and as many landmarks) and ``terminate_on_success`` (False).
            And ours: ``backend`` (``numpy``, or ``torch``), and with the latter ``device`` (``cpu``), a torch device.

    Raises:
        UsageError: an unknown task or argument, or a value of the wrong type or out of range.
        MissingExtraError: torch is not installed.
    """
    if task not in SCENARIOS:
        raise UsageError(unknown_name("mpe task", task, TASKS))
    name = f"mpe/{task}"
    own = {key: value for key, value in arguments.items() if key not in BACKEND_ARGUMENTS}
    resolved = resolve_arguments(name, own, SCENARIOS[task].defaults, _RULES, others=BACKEND_ARGUMENTS)
    device = torch_device(name, arguments)
    copies = batch_size if device is None else 1
    environment = MpeEnvironment(task, copies, SCENARIOS[task](copies, resolved), resolved)
    if device is None:
        return environment
    from hmarl.sdk.environments.on_device.mpe import DeviceMpe  # noqa: PLC0415 - imports torch

    return DeviceMpe(batch_size, environment, device)


class MpeEnvironment:
    """B copies of one MPE task; a ``VectorEnvironment``.

    Physics are float64, everything handed out is float32. Each call returns new arrays that later calls never touch;
    the ``observations`` of one call are views of its ``state``, which is their concatenation.

    Attributes:
        scenario: the task.
        horizon: steps until truncation.
        terminates: whether success ends an episode.
    """

    def __init__(self, task: str, batch_size: int, scenario: Scenario, arguments: Mapping[str, Any]) -> None:
        self.batch_size = batch_size
        self.spec = EnvironmentSpec(
            name=f"mpe/{task}",
            agents=scenario.agents,
            state_size=sum(agent.observation_size for agent in scenario.agents),
            horizon=arguments["max_cycles"],
            team_reward="sum",
            control_period_s=TIME_STEP_S,
            arguments=dict(arguments),
            has_success=scenario.success() is not None,
        )
        self.scenario = scenario
        self.horizon: int = arguments["max_cycles"]
        self.terminates: bool = arguments.get("terminate_on_success", False)
        self._steps = np.zeros(batch_size, dtype=np.int64)
        self._streams = EpisodeStreams(batch_size)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes: those that ``mpe2``'s ``reset(seed)`` starts.

        Args:
            seeds: [B] integers, at least 0.

        Raises:
            UsageError: seeds of another shape, or negative.
        """
        self._restart(self._streams.begin(seeds), np.arange(self.batch_size))
        return self._observe()

    def step(self, actions: tuple[npt.NDArray[Any], ...]) -> StepResult:
        """Advance every environment by 0.1 s; those whose episode has ended start the next one.

        Args:
            actions: one array per group. Discrete: int64 [B, N_group], in simple_reference move + 5·word. Continuous:
                float32 [B, N_group, A], clipped to [0, 1].

        Raises:
            UsageError: before the first ``reset``, or actions of a wrong number, shape or kind, out of range or NaN;
                nothing has then changed.
        """
        streams, scenario = self._streams.running("step"), self.scenario
        scenario.control(checked_actions(actions, self.spec.groups, self.batch_size))
        scenario.world.advance()
        scenario.refresh()
        self._steps += 1
        rewards = scenario.rewards().T.astype(np.float32, order="C")
        success = scenario.success()
        truncated = self._steps >= self.horizon
        terminated = np.zeros(self.batch_size, dtype=bool)
        if self.terminates and success is not None:
            terminated = success & ~truncated
        ended = np.flatnonzero(truncated | terminated)
        observation, final = self._observe(), None
        if len(ended):
            self._restart(streams, ended)
            observation, final = self._observe(), observation
        return StepResult(observation, rewards, terminated, truncated, final, success)

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that determines the future, as new arrays with B leading.

        Returns:
            ``positions`` [B, N + L, 2], ``velocities`` [B, N, 2] and ``words`` [B, S, C] (of the speaking agents)
            float64; ``goals`` [B, G] and ``steps`` [B] int64; the generators as in ``RandomStreams.get_state``.

        Raises:
            UsageError: before the first ``reset``.
        """
        return {**self._world_state(), **self._streams.running("get_state").get_state()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Continue, to the last bit, where ``get_state`` was called.

        Raises:
            UsageError: an array is missing, unknown, or of another shape or kind; nothing has then changed.
        """
        like = {**self._world_state(), **self._streams.layout()}
        saved = checked_state(state, like)
        scenario, world = self.scenario, self.scenario.world
        self.check_goals(saved["goals"])
        self._streams.resume(saved)
        for part, name in ((world.positions, "positions"), (world.velocities, "velocities"), (world.words, "words")):
            part[...] = saved[name].T
        scenario.goals[...] = saved["goals"].T
        self._steps[...] = saved["steps"]
        scenario.refresh()
        return self._observe()

    def render(self, index: int = 0) -> npt.NDArray[np.uint8]:
        """A picture [320, 320, 3] of environment ``index``: agents in colours, landmarks smaller, words as dots."""
        return drawing.draw(self.scenario, index)

    def agent_pixels(self, index: int = 0) -> npt.NDArray[np.float64]:
        """[N, 3] x, y and radius of the agents in the picture; see ``LocatesAgents``."""
        return drawing.agent_pixels(self.scenario, index)

    def close(self) -> None:
        """Nothing to free."""

    # --- what the torch backend shares ------------------------------------------------------------------------------

    def spec_with(self, **arguments: Any) -> EnvironmentSpec:
        """The spec with further arguments."""
        return replace(self.spec, arguments={**self.spec.arguments, **arguments})

    def by_group(self, state: Array) -> tuple[Array, ...]:
        """Per group [B, N_group, observation_size], views of a state [B, state_size]."""
        observations, start = [], 0
        for group in self.spec.groups:
            count, size = len(group.agents), group.example.observation_size
            block = state[:, start : start + count * size]
            observations.append(block.reshape(len(state), count, size))
            start += count * size
        return tuple(observations)

    def check_goals(self, goals: npt.NDArray[np.int64]) -> None:
        """Whether a saved state's goals are landmarks.

        Raises:
            UsageError: they are not.
        """
        landmarks = len(self.scenario.landmark_colours)
        if goals.size and not (goals.min() >= 0 and goals.max() < landmarks):
            raise UsageError(f"state 'goals': got numbers outside [0, {landmarks})")

    def _restart(self, streams: RandomStreams, rows: npt.NDArray[np.intp]) -> None:
        self.scenario.restart(streams, rows)
        self.scenario.refresh()
        self._steps[rows] = 0

    def _observe(self) -> Observation:
        state = self.scenario.observer.observe()
        observations = self.by_group(state)
        active = np.ones((self.batch_size, len(self.spec.agents)), dtype=bool)
        return Observation(observations, (None,) * len(observations), state, active)

    def _world_state(self) -> dict[str, npt.NDArray[Any]]:
        scenario, world = self.scenario, self.scenario.world
        parts = {"positions": world.positions, "velocities": world.velocities, "words": world.words}
        copies: dict[str, npt.NDArray[Any]] = {name: part.T.copy(order="C") for name, part in parts.items()}
        return {**copies, "goals": scenario.goals.T.copy(order="C"), "steps": self._steps.copy()}


_RULES = {
    "N": COUNT,
    "max_cycles": COUNT,
    "local_ratio": PROPORTION,
    "continuous_actions": FLAG,
    "terminate_on_success": FLAG,
}

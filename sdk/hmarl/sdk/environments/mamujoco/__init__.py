"""MaMuJoCo: robots whose joints are shared out among agents, e.g. ``mamujoco/HalfCheetah-2x3``.

All environments of a batch are stepped together on MuJoCo's threads. Episodes equal those of gymnasium-robotics'
``mamujoco_v1`` from the same seeds to the last bit (physics in float64; observations, state and rewards are then
rounded to float32). It needs neither that package nor PettingZoo, and renders without OpenGL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environment import VECTORISED, Observation, StepResult
from hmarl.sdk.environments.authoring import (
    COUNT,
    EpisodeStreams,
    RandomStreams,
    at_least,
    checked_actions,
    checked_state,
    resolve_arguments,
)
from hmarl.sdk.environments.mamujoco import drawing
from hmarl.sdk.environments.mamujoco.factors import divide
from hmarl.sdk.environments.mamujoco.physics import Physics, Rows
from hmarl.sdk.environments.mamujoco.robots import Floats, Partition, Robot, robot_of, task_names
from hmarl.sdk.spaces import EnvironmentSpec

TASKS = task_names()
COPY_COST = VECTORISED

_DEFAULTS: dict[str, int | None] = {"agent_obsk": 1, "horizon": 1000, "threads": None}
_RULES = {"agent_obsk": at_least(0), "horizon": COUNT, "threads": COUNT}


def make(task: str, batch_size: int = 1, **arguments: Any) -> MamujocoEnvironment:
    """Make B copies of a MaMuJoCo task.

    Args:
        task: one of ``TASKS``; ``ManySegmentSwimmer-NxM`` (also ``ManyAgentSwimmer-NxM``) has N agents of M joints.
        batch_size: B, at least 1.
        arguments: ``agent_obsk`` (1; an agent also observes joints up to so many edges away), ``horizon`` (1000; steps
            until truncation) and ``threads`` (None; that step the batch, None for one per CPU).

    Raises:
        UsageError: an unknown task or argument, or a value of the wrong type or out of range.
    """
    robot, partition = robot_of(task)
    resolved = resolve_arguments(f"mamujoco/{task}", arguments, _DEFAULTS, _RULES)
    return MamujocoEnvironment(task, batch_size, robot, partition, resolved)


class MamujocoEnvironment:
    """B copies of one MaMuJoCo task; a ``VectorEnvironment``.

    Every agent receives the whole robot's reward. Each call returns new arrays that later calls never touch.
    """

    def __init__(
        self, task: str, batch_size: int, robot: Robot, partition: Partition, arguments: Mapping[str, Any]
    ) -> None:
        self.batch_size = batch_size
        model = robot.load()
        factors = divide(robot, model, partition, arguments["agent_obsk"])
        self._period_s = float(model.opt.timestep * robot.frame_skip)
        self.spec = EnvironmentSpec(
            name=f"mamujoco/{task}",
            agents=factors.agents,
            state_size=len(factors.state),
            horizon=arguments["horizon"],
            team_reward="shared",
            control_period_s=self._period_s,
            arguments=dict(arguments),
        )
        self._robot, self._factors, self._partition = robot, factors, partition
        self._physics = Physics(
            model,
            batch_size,
            frame_skip=robot.frame_skip,
            threads=arguments["threads"],
            feels_contacts=robot.contact_cost is not None,
        )
        groups = [group.agents for group in self.spec.groups]
        self._observed = [np.stack([factors.observed[agent] for agent in group]) for group in groups]
        self._actuators = [np.stack([factors.actuators[agent] for agent in group]) for group in groups]
        self._horizon: int = arguments["horizon"]
        self._steps = np.zeros(batch_size, dtype=np.int64)
        self._streams = EpisodeStreams(batch_size)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes: those that ``mamujoco_v1``'s ``reset(seed)`` starts.

        Args:
            seeds: [B] integers, at least 0.

        Raises:
            UsageError: seeds of another shape, or negative.
        """
        self._restart(self._streams.begin(seeds), np.arange(self.batch_size))
        return self._observe()

    def step(self, actions: tuple[npt.NDArray[Any], ...]) -> StepResult:
        """Advance every environment by one control period; those whose episode has ended start the next one.

        Args:
            actions: one array per group, float32 [B, N_group, joints], clipped to the actuators' range.

        Raises:
            UsageError: before the first ``reset``, or actions of a wrong number, shape or kind, or NaN; nothing has
                then changed.
            EnvironmentFault: MuJoCo gave up on a simulation.
        """
        streams, physics = self._streams.running("step"), self._physics
        controls = self._controls(checked_actions(actions, self.spec.groups, self.batch_size))
        positions_before = physics.forward_positions.copy()
        physics.advance(controls)
        self._steps += 1
        healthy = self._healthy()
        rewards = self._rewards(positions_before, controls, healthy).astype(np.float32)
        terminated = ~healthy
        truncated = (self._steps >= self._horizon) & healthy
        ended = np.flatnonzero(truncated | terminated)
        observation, final = self._observe(), None
        if len(ended):
            self._restart(streams, ended)
            observation, final = self._observe(), observation
        shared = np.repeat(rewards[:, None], len(self.spec.agents), axis=1)
        return StepResult(observation, shared, terminated, truncated, final)

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that determines the future, as new arrays with B leading.

        Returns:
            ``physics`` [B, R] (MuJoCo's integration state, solver warm start included), ``forward_positions`` [B] and
            ``contact_forces`` [B, F] float64; ``steps`` [B] int64; the generators as in ``RandomStreams.get_state``.

        Raises:
            UsageError: before the first ``reset``.
        """
        return {**self._simulation_state(), **self._streams.running("get_state").get_state()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Continue, to the last bit, where ``get_state`` was called.

        Raises:
            UsageError: an array is missing, unknown, or of another shape or kind; nothing has then changed.
        """
        saved = checked_state(state, {**self._simulation_state(), **self._streams.layout()})
        self._streams.resume(saved)
        self._physics.rows[...] = saved["physics"]
        self._physics.forward_positions[...] = saved["forward_positions"]
        self._physics.contact_forces[...] = saved["contact_forces"]
        self._steps[...] = saved["steps"]
        return self._observe()

    def render(self, index: int = 0) -> npt.NDArray[np.uint8]:
        """A picture [400, 400, 3] of environment ``index``, each agent's limbs in a colour, drawn without OpenGL."""
        return drawing.draw(self._physics.model, self._physics.posed(index), self._partition, self._robot.up)

    def close(self) -> None:
        """Nothing to free: MuJoCo's threads end with the object."""

    def _restart(self, streams: RandomStreams, rows: Rows) -> None:
        """Draw in Gymnasium's order: positions, then velocities."""
        model, noise = self._physics.model, self._robot.reset_noise
        positions, velocities = np.empty((len(rows), model.nq)), np.empty((len(rows), model.nv))
        for place, row in enumerate(rows.tolist()):
            generator = streams.generators[row]
            positions[place] = model.qpos0 + generator.uniform(-noise, noise, model.nq)
            if self._robot.normal_velocities:
                velocities[place] = noise * generator.standard_normal(model.nv)
            else:
                velocities[place] = generator.uniform(-noise, noise, model.nv)
        self._physics.restart(rows, positions, velocities)
        self._steps[rows] = 0

    def _controls(self, actions: tuple[npt.NDArray[Any], ...]) -> Floats:
        controls = np.empty((self.batch_size, self._physics.model.nu))
        for block, actuators in zip(actions, self._actuators, strict=True):
            controls[:, actuators] = block
        return controls

    def _healthy(self) -> npt.NDArray[np.bool_]:
        if self._robot.healthy is None:
            return np.ones(self.batch_size, dtype=bool)
        return self._robot.healthy(self._physics.positions, self._physics.velocities)

    def _rewards(self, positions_before: Floats, controls: Floats, healthy: npt.NDArray[np.bool_]) -> Floats:
        """Speed forwards, 1 for being up where the robot can fall, less the costs of controls and contacts: [B]."""
        robot, physics = self._robot, self._physics
        rewards = (physics.forward_positions - positions_before) / self._period_s
        if robot.healthy is not None:
            rewards += healthy
        costs = robot.control_cost * np.square(controls).sum(axis=1)
        if robot.contact_cost is not None:
            costs += robot.contact_cost * np.square(physics.contact_forces).sum(axis=1)
        return np.asarray(rewards - costs)

    def _observe(self) -> Observation:
        physics = self._physics
        seen = self._factors.features(physics.positions, physics.velocities, physics.contact_forces)
        blocks = tuple(seen.take(columns, axis=1) for columns in self._observed)
        active = np.ones((self.batch_size, len(self.spec.agents)), dtype=bool)
        return Observation(blocks, (None,) * len(blocks), seen.take(self._factors.state, axis=1), active)

    def _simulation_state(self) -> dict[str, npt.NDArray[Any]]:
        physics = self._physics
        return {
            "physics": physics.rows.copy(),
            "forward_positions": physics.forward_positions.copy(),
            "contact_forces": physics.contact_forces.copy(),
            "steps": self._steps.copy(),
        }

"""Which numbers of a robot each agent of MaMuJoCo observes and controls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.environments.mamujoco.robots import Floats, Partition, Robot
from hmarl.sdk.spaces import AgentSpec

_FASTEST = 10.0
Columns = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Factors:
    """A robot divided among agents. Columns count the numbers that ``features`` lays side by side.

    Attributes:
        clips_velocities: whether any agent observes them clipped.
        agents: the agents' specs.
        observed: for each agent, the columns that make up its observation.
        state: the columns that make up the state.
        actuators: for each agent, the actuators that its actions drive.
    """

    clips_velocities: bool
    agents: tuple[AgentSpec, ...]
    observed: tuple[Columns, ...]
    state: Columns
    actuators: tuple[Columns, ...]

    def features(self, positions: Floats, velocities: Floats, contact_forces: Floats) -> npt.NDArray[np.float32]:
        """All that observations and state are made of.

        Args:
            positions: [B, nq].
            velocities: [B, nv].
            contact_forces: [B, 6 · bodies], or [B, 0].

        Returns:
            The arguments side by side, between the last two the clipped velocities where any agent observes them.
        """
        parts = [positions, velocities, contact_forces]
        if self.clips_velocities:
            parts.insert(2, velocities.clip(-_FASTEST, _FASTEST))
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")


def divide(robot: Robot, model: mujoco.MjModel, partition: Partition, neighbours: int) -> Factors:
    """Divide a robot among agents.

    Args:
        robot: the robot.
        model: its model.
        partition: the joints of each agent.
        neighbours: an agent also observes the positions of joints up to so many edges away.
    """
    numbers = _Numbers(robot, model)
    low, high = model.actuator_ctrlrange[0].tolist()
    agents, observed, actuators = [], [], []
    for index, joints in enumerate(partition):
        entries = list(_entries(robot, numbers, joints, neighbours))
        agents.append(
            AgentSpec(
                id=f"agent_{index}",
                observation_size=sum(len(columns) for _, columns in entries),
                action_space=spaces.Box(low, high, (len(joints),), np.float32),
                observation_layout=tuple((name, len(columns)) for name, columns in entries),
            )
        )
        observed.append(np.concatenate([columns for _, columns in entries]).astype(np.intp))
        actuators.append(np.array([numbers.actuator(joint) for joint in joints], dtype=np.intp))
    return Factors(numbers.clips, tuple(agents), tuple(observed), numbers.state(), tuple(actuators))


class _Numbers:
    """Where a joint's or body's numbers stand among the features, the state and the actuators."""

    def __init__(self, robot: Robot, model: mujoco.MjModel) -> None:
        self._robot, self._model = robot, model
        self._clipped = model.nq + model.nv
        self.clips = robot.agents_clip_velocities or robot.state_clips_velocities
        self._forces = model.nq + (2 if self.clips else 1) * model.nv

    def _joint(self, name: str) -> int:
        return int(self._model.joint(name).id)

    def actuator(self, joint: str) -> int:
        return int(np.flatnonzero(self._model.actuator_trnid[:, 0] == self._joint(joint))[0])

    def position(self, joint: str) -> list[int]:
        return [int(self._model.jnt_qposadr[self._joint(joint)])]

    def velocity(self, joint: str) -> list[int]:
        return self.velocities([int(self._model.jnt_dofadr[self._joint(joint)])])

    def velocities(self, numbers: list[int]) -> list[int]:
        start = self._clipped if self._robot.agents_clip_velocities else self._model.nq
        return [start + number for number in numbers]

    def forces(self, body: int) -> list[int]:
        return [self._forces + 6 * body + axis for axis in range(6)]

    def state(self) -> Columns:
        """Positions, velocities and, where they are felt, contact forces of all bodies but the world."""
        start = self._clipped if self._robot.state_clips_velocities else self._model.nq
        positions = range(self._robot.unseen_positions, self._model.nq)
        velocities = range(start, start + self._model.nv)
        felt = self._model.nbody if self._robot.contact_cost is not None else 1
        forces = range(self._forces + 6, self._forces + 6 * felt)
        return np.array([*positions, *velocities, *forces], dtype=np.intp)


def _entries(
    robot: Robot, numbers: _Numbers, joints: tuple[str, ...], neighbours: int
) -> Iterator[tuple[str, list[int]]]:
    """The named parts of an agent's observation: its own joints, neighbours by distance, then the robot's root."""
    felt: set[int] = set()
    for distance, ring in enumerate(_rings(robot, joints, neighbours)):
        for joint in ring:
            yield f"{joint}.position", numbers.position(joint)
            if distance == 0:
                yield f"{joint}.velocity", numbers.velocity(joint)
                # Two joints may share a body, whose forces are told once.
                bodies = [body for body in robot.bodies.get(joint, ()) if body not in felt]
                felt.update(bodies)
                if bodies:
                    yield f"{joint}.contact_forces", [column for body in bodies for column in numbers.forces(body)]
    if robot.root_positions:
        yield "root.positions", list(robot.root_positions)
        yield "root.velocities", numbers.velocities(list(robot.root_velocities))


def _rings(robot: Robot, joints: tuple[str, ...], neighbours: int) -> Iterator[list[str]]:
    """The joints themselves, then those one edge away, two edges and so on; in each ring by name."""
    seen, ring = set(joints), set(joints)
    yield sorted(ring)
    for _ in range(neighbours):
        ring = {joint for edge in robot.edges if ring.intersection(edge) for joint in edge} - seen
        if not ring:
            return
        seen |= ring
        yield sorted(ring)

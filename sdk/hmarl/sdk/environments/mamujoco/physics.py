"""B simulations of one robot, stepped on threads by MuJoCo, each to the last bit as one ``MjData`` in a loop."""

from __future__ import annotations

import os

import mujoco
import numpy as np
import numpy.typing as npt
from mujoco.batch import Batch, SimulationError

from hmarl.sdk.environments.mamujoco.robots import Floats
from hmarl.sdk.errors import EnvironmentFault

Rows = npt.NDArray[np.intp]
# The robot's main body, below the world.
_TORSO = 1
_LARGEST_FORCE = 1.0


class Physics:
    """B simulations of one model.

    Args:
        model: the robot.
        batch_size: B.
        frame_skip: physics steps per ``advance``.
        threads: that step the simulations, the caller's included; None for one per CPU.
        feels_contacts: whether ``contact_forces`` are wanted.

    Attributes:
        rows: [B, R], all that determines the future of each simulation; writing to it is how one is restored.
        positions: [B, nq] and velocities: [B, nv], views of ``rows``.
        forward_positions: [B], the x that Gymnasium's tasks reward. Where contacts are felt it is the torso's as the
            last physics step derived it, one substep behind ``positions``.
        contact_forces: [B, 6 · bodies], clipped to ±1, zeros after a restart; [B, 0] where contacts are not felt.
    """

    def __init__(
        self, model: mujoco.MjModel, batch_size: int, *, frame_skip: int, threads: int | None, feels_contacts: bool
    ) -> None:
        self.model = model
        self._frame_skip = frame_skip
        self._feels_contacts = feels_contacts
        # Contact forces follow from what only a whole MjData holds; else the threads share a few.
        self._batch = Batch(model, batch_size, min(threads or _cpu_count(), batch_size), persistent=feels_contacts)
        self._scratch = mujoco.MjData(model)
        self.rows: Floats = self._batch.state
        self.positions: Floats = self._batch.bind("qpos")
        self.velocities: Floats = self._batch.bind("qvel")
        self._controls: Floats = self._batch.bind("ctrl")
        self._forward: Floats = self._batch.bind("xpos")[:, _TORSO, 0] if feels_contacts else self.positions[:, 0]
        self.forward_positions: Floats = np.zeros(batch_size)
        self.contact_forces: Floats = np.zeros((batch_size, 6 * model.nbody if feels_contacts else 0))

    def advance(self, controls: Floats) -> None:
        """Step every simulation under ``controls`` [B, nu].

        Raises:
            EnvironmentFault: MuJoCo gave up on a simulation.
        """
        self._controls[...] = controls
        try:
            self._batch.step(nstep=self._frame_skip)
        except SimulationError as error:
            raise EnvironmentFault(str(error)) from error
        self.forward_positions[...] = self._forward
        if self._feels_contacts:
            self._feel_contacts()

    def restart(self, rows: Rows, positions: Floats, velocities: Floats) -> None:
        """Reset the simulations ``rows`` and put them at ``positions`` [R, nq] with ``velocities`` [R, nv]."""
        self._batch.reset(rows, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.positions[rows] = positions
        self.velocities[rows] = velocities
        self._batch.forward(rows)
        self.forward_positions[...] = self._forward
        self.contact_forces[rows] = 0.0

    def posed(self, index: int) -> mujoco.MjData:
        """Simulation ``index`` with all places of bodies and shapes computed; the next call overwrites it."""
        data = self._batch.get_data(index, self._scratch)
        mujoco.mj_kinematics(self.model, data)
        return data

    def _feel_contacts(self) -> None:
        """The force and torque on each body, as Gymnasium has MuJoCo compute them after the last substep."""
        for index, forces in enumerate(self.contact_forces):
            data = self._batch.get_data(index, self._scratch)
            mujoco.mj_rnePostConstraint(self.model, data)
            np.clip(data.cfrc_ext.ravel(), -_LARGEST_FORCE, _LARGEST_FORCE, out=forces)


def _cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Pictures of MuJoCo robots as seen by a camera at infinity, drawn with NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np
import numpy.typing as npt

from hmarl.sdk.drawing.camera import Camera
from hmarl.sdk.drawing.figures import Figure
from hmarl.sdk.drawing.figures import draw as draw_figures
from hmarl.sdk.environments.mamujoco.robots import Floats, Partition
from hmarl.sdk.environments.mpe.drawing import agent_colour

_Colour = tuple[float, float, float]

_TORSO = 1
_SIZE_PIXELS = 400
_GREY = (0.5, 0.5, 0.5)
_FLOOR = ((0.86, 0.88, 0.86), (0.93, 0.94, 0.93))


def draw(
    model: mujoco.MjModel, data: mujoco.MjData, partition: Partition, up: tuple[float, float, float]
) -> npt.NDArray[np.uint8]:
    """A robot in the middle of a picture [400, 400, 3], over a floor with a stripe a metre.

    Limbs have the colour of the agent that moves them.

    Args:
        model: the robot.
        data: its pose, the places of its shapes computed.
        partition: the joints of each agent.
        up: the world's direction that points upwards in the picture; x points to the right.
    """
    camera = np.array([(1.0, 0.0, 0.0), up, np.cross((1.0, 0.0, 0.0), up)])
    x, y, _ = (camera @ data.xpos[_TORSO]).tolist()
    reach = _reach(model)
    # Seen from the side, there is air above the floor.
    floor_top = 0.0 if up[1] == 0.0 else y + reach
    figures = [*_floor(x, y, reach, floor_top), *_limbs(model, data, partition, camera)]
    return draw_figures(figures, Camera.square((x, y), reach, _SIZE_PIXELS))


def _reach(model: mujoco.MjModel) -> float:
    """How far around the torso the picture must show the robot, in metres, the same in every pose but for a stretch."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    shapes = np.flatnonzero(model.geom_bodyid)
    distances = np.linalg.norm(data.geom_xpos[shapes] - data.xpos[_TORSO], axis=1) + model.geom_rbound[shapes]
    return 1.25 * float(distances.max())


def _floor(x: float, y: float, reach: float, top: float) -> Iterator[Figure]:
    bottom = y - reach
    if top <= bottom:
        return
    for metre in range(int(np.floor(x - reach)), int(np.ceil(x + reach))):
        middle = (metre + 0.5, (top + bottom) / 2.0)
        yield Figure("box", middle, 0.0, (1.0, top - bottom), _FLOOR[metre % 2])


def _limbs(model: mujoco.MjModel, data: mujoco.MjData, partition: Partition, camera: Floats) -> Iterator[Figure]:
    """The shapes of the robot, the farthest first."""
    colours = _colours(model, partition)
    places = data.geom_xpos @ camera.T
    for shape in np.argsort(places[:, 2]):
        body = int(model.geom_bodyid[shape])
        if body == 0:
            continue
        radius, half_length = model.geom_size[shape, :2].tolist()
        if model.geom_type[shape] == mujoco.mjtGeom.mjGEOM_SPHERE:
            half_length = 0.0
        right, upwards, _ = (camera @ data.geom_xmat[shape].reshape(3, 3)[:, 2] * half_length).tolist()
        yield Figure(
            kind="capsule",
            position=(float(places[shape, 0]), float(places[shape, 1])),
            rotation_rad=float(np.arctan2(upwards, right)),
            size=(2.0 * float(np.hypot(right, upwards)), radius),
            colour=colours.get(body, _GREY),
        )


def _colours(model: mujoco.MjModel, partition: Partition) -> dict[int, _Colour]:
    """The colour of every body that an agent moves against the one before it."""
    colours: dict[int, _Colour] = {}
    for agent, joints in enumerate(partition):
        red, green, blue = agent_colour(agent).tolist()
        for joint in joints:
            colours[int(model.jnt_bodyid[model.joint(joint).id])] = (red, green, blue)
    return colours

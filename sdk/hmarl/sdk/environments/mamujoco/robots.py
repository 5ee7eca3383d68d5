"""The robots of MaMuJoCo as data: model, reward, and the graph that says whose joints are whose neighbours.

Models, rewards and ends are those of Gymnasium's v5 tasks, whose model files are loaded from the installed package;
graphs and partitions are those of gymnasium-robotics' ``mamujoco_v1``, but for Walker2d-6x1, which it does not have.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt

from hmarl.sdk.errors import UsageError, unknown_name

Floats = npt.NDArray[np.float64]
Healthy = Callable[[Floats, Floats], npt.NDArray[np.bool_]]
Partition = tuple[tuple[str, ...], ...]

_ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
_SWIMMER = "ManySegmentSwimmer"
# Longer ones burst under full motor power.
_MOST_SWIMMER_JOINTS = 90
# The name in the literature, and that of gymnasium-robotics.
_SWIMMER_TASK = re.compile(rf"(?:ManyAgentSwimmer|{_SWIMMER})-([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Robot:
    """One robot and its single-agent task.

    Attributes:
        load: makes its model.
        frame_skip: physics steps per step of the environment.
        partitions: by the second half of a task's name, the joints of each agent in the order of its actions.
        edges: sets of neighbouring joints.
        root_positions: numbers in ``qpos`` that every agent observes.
        root_velocities: numbers in ``qvel`` that every agent observes.
        unseen_positions: how many numbers at the start of ``qpos`` (where the robot is) the state leaves out.
        reset_noise: half the width of the uniform noise on the first positions, and that or the standard deviation of
            the noise on the first velocities.
        normal_velocities: whether the first velocities are normally distributed.
        control_cost: weight of the sum of squared actions.
        contact_cost: weight of the sum of squared contact forces, None for a robot that feels none.
        healthy: whether the robot is still up, from positions [B, nq] and velocities [B, nv]; None if it cannot fall.
        agents_clip_velocities: agents observe velocities clipped to ±10.
        state_clips_velocities: the state holds velocities clipped to ±10.
        bodies: by joint, the bodies whose contact forces the joint's agent observes.
        up: the world's direction that points upwards in pictures; x points to the right.
    """

    load: Callable[[], mujoco.MjModel]
    frame_skip: int
    partitions: Mapping[str, Partition]
    edges: tuple[tuple[str, ...], ...]
    root_positions: tuple[int, ...]
    root_velocities: tuple[int, ...]
    unseen_positions: int
    reset_noise: float
    control_cost: float
    normal_velocities: bool = False
    contact_cost: float | None = None
    healthy: Healthy | None = None
    agents_clip_velocities: bool = False
    state_clips_velocities: bool = False
    bodies: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)


def robot_of(task: str) -> tuple[Robot, Partition]:
    """The robot of a task and its partition into agents.

    Raises:
        UsageError: there is no such task.
    """
    sizes = _SWIMMER_TASK.fullmatch(task)
    if sizes is not None:
        return _swimmer(*(int(size) for size in sizes.groups()))
    name, _, partition = task.partition("-")
    if name not in ROBOTS or partition not in ROBOTS[name].partitions:
        raise UsageError(unknown_name("mamujoco task", task, task_names()))
    return ROBOTS[name], ROBOTS[name].partitions[partition]


def task_names() -> list[str]:
    """All tasks, the swimmer's as a pattern."""
    return [f"{name}-{partition}" for name, robot in ROBOTS.items() for partition in robot.partitions] + [
        f"{_SWIMMER}-NxM"
    ]


def _asset(name: str) -> mujoco.MjModel:
    with warnings.catch_warnings():
        # Gymnasium's files use an attribute that MuJoCo deprecates; loaded in another way, it would write a log file.
        warnings.simplefilter("ignore")
        return mujoco.MjSpec.from_file(str(_ASSETS / name)).compile()


def _chain(*joints: str) -> tuple[tuple[str, ...], ...]:
    """Edges between each joint and the next."""
    return tuple(pairwise(joints))


def _one_each(*joints: str) -> Partition:
    return tuple((joint,) for joint in joints)


def _walker_is_up(positions: Floats, velocities: Floats) -> npt.NDArray[np.bool_]:
    height, angle = positions[:, 1], positions[:, 2]
    return np.asarray((height > 0.8) & (height < 2.0) & (angle > -1.0) & (angle < 1.0))


def _hopper_is_up(positions: Floats, velocities: Floats) -> npt.NDArray[np.bool_]:
    height, angle = positions[:, 1], positions[:, 2]
    calm = (np.abs(positions[:, 2:]) < 100.0).all(axis=1) & (np.abs(velocities) < 100.0).all(axis=1)
    return np.asarray(calm & (height > 0.7) & (np.abs(angle) < 0.2))


def _ant_is_up(positions: Floats, velocities: Floats) -> npt.NDArray[np.bool_]:
    finite = np.isfinite(positions).all(axis=1) & np.isfinite(velocities).all(axis=1)
    return np.asarray(finite & (positions[:, 2] >= 0.2) & (positions[:, 2] <= 1.0))


_BACK, _FRONT = ("bthigh", "bshin", "bfoot"), ("fthigh", "fshin", "ffoot")
_RIGHT = ("foot_joint", "leg_joint", "thigh_joint")
_LEFT = ("foot_left_joint", "leg_left_joint", "thigh_left_joint")
_ANT_LEGS = tuple((f"hip_{leg}", f"ankle_{leg}") for leg in (1, 2, 3, 4))


def _ant_bodies() -> dict[str, tuple[int, ...]]:
    """The torso is body 1; each leg is three more, the first of which is fixed to the torso."""
    bodies: dict[str, tuple[int, ...]] = {}
    for leg, (hip, ankle) in enumerate(_ANT_LEGS):
        first = 2 + 3 * leg
        bodies[hip], bodies[ankle] = (1, first), (first, first + 1, first + 2)
    return bodies


ROBOTS: dict[str, Robot] = {
    "HalfCheetah": Robot(
        load=partial(_asset, "half_cheetah.xml"),
        frame_skip=5,
        partitions={"2x3": (_BACK, _FRONT), "6x1": _one_each(*_BACK, *_FRONT)},
        edges=_chain(*reversed(_BACK), *_FRONT),
        root_positions=(1, 2),
        root_velocities=(0, 1, 2),
        unseen_positions=1,
        reset_noise=0.1,
        normal_velocities=True,
        control_cost=0.1,
    ),
    "Walker2d": Robot(
        load=partial(_asset, "walker2d_v5.xml"),
        frame_skip=4,
        # 6x1: one joint an agent, in the order in which the two agents of 2x3 have them.
        partitions={"2x3": (_RIGHT, _LEFT), "6x1": _one_each(*_RIGHT, *_LEFT)},
        edges=_chain(*_RIGHT, *reversed(_LEFT)),
        root_positions=(1, 2),
        root_velocities=(0, 1, 2),
        unseen_positions=1,
        reset_noise=5e-3,
        control_cost=1e-3,
        healthy=_walker_is_up,
        state_clips_velocities=True,
    ),
    "Hopper": Robot(
        load=partial(_asset, "hopper.xml"),
        frame_skip=4,
        partitions={"3x1": _one_each("thigh_joint", "leg_joint", "foot_joint")},
        edges=_chain("thigh_joint", "leg_joint", "foot_joint"),
        root_positions=(1, 2),
        root_velocities=(0, 1, 2),
        unseen_positions=1,
        reset_noise=5e-3,
        control_cost=1e-3,
        healthy=_hopper_is_up,
        agents_clip_velocities=True,
        state_clips_velocities=True,
    ),
    "Ant": Robot(
        load=partial(_asset, "ant.xml"),
        frame_skip=5,
        partitions={
            "2x4": (_ANT_LEGS[0] + _ANT_LEGS[1], _ANT_LEGS[2] + _ANT_LEGS[3]),
            "2x4d": (_ANT_LEGS[0] + _ANT_LEGS[3], _ANT_LEGS[1] + _ANT_LEGS[2]),
            "4x2": _ANT_LEGS,
        },
        edges=(*_ANT_LEGS, tuple(hip for hip, _ in _ANT_LEGS)),
        root_positions=(2, 3, 4, 5, 6),
        root_velocities=(0, 1, 2, 3, 4, 5),
        unseen_positions=2,
        reset_noise=0.1,
        normal_velocities=True,
        control_cost=0.5,
        contact_cost=5e-4,
        healthy=_ant_is_up,
        bodies=_ant_bodies(),
        up=(0.0, 0.5, 0.866),
    ),
}


def _swimmer(agents: int, joints_each: int) -> tuple[Robot, Partition]:
    """A swimmer of agents · joints_each joints between one more segments than that."""
    count = agents * joints_each
    if not 2 <= count <= _MOST_SWIMMER_JOINTS:
        raise UsageError(f"{_SWIMMER}-{agents}x{joints_each}: got {count} joints, expected 2 to {_MOST_SWIMMER_JOINTS}")
    joints = tuple(f"rot{number}" for number in range(count))
    robot = Robot(
        load=partial(mujoco.MjModel.from_xml_string, _swimmer_xml(count)),
        frame_skip=4,
        partitions={},
        edges=_chain(*joints),
        root_positions=(),
        root_velocities=(),
        unseen_positions=2,
        reset_noise=0.1,
        control_cost=1e-4,
        up=(0.0, 1.0, 0.0),
    )
    return robot, tuple(joints[start : start + joints_each] for start in range(0, count, joints_each))


def _swimmer_xml(joints: int) -> str:
    """Rods of length 1 in a viscous plane, each joint a motor; the axes of inner joints alternate."""
    bodies = ""
    for joint in reversed(range(joints)):
        axis = -1 if joint % 2 == 0 and 0 < joint < joints - 1 else 1
        bodies = f"""<body pos="{0.5 if joint == 0 else -1} 0 0">
            <geom type="capsule" fromto="0 0 0 -1 0 0" size="0.1"/>
            <joint name="rot{joint}" type="hinge" axis="0 0 {axis}" limited="true" range="-100 100"/>{bodies}</body>"""
    motors = "".join(
        f'<motor joint="rot{joint}" gear="150" ctrllimited="true" ctrlrange="-1 1"/>' for joint in range(joints)
    )
    return f"""<mujoco model="swimmer">
        <compiler angle="degree" inertiafromgeom="true"/>
        <option integrator="RK4" timestep="0.01" density="4000" viscosity="0.1"/>
        <default><geom contype="0" conaffinity="0" condim="1"/><joint armature="0.1"/></default>
        <worldbody><body name="torso">
            <geom type="capsule" fromto="1.5 0 0 0.5 0 0" size="0.1"/>
            <joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/><joint type="hinge" axis="0 0 1"/>
            {bodies}
        </body></worldbody>
        <actuator>{motors}</actuator>
    </mujoco>"""

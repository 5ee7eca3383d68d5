"""Plain pictures of VMAS worlds, for machines without OpenGL, and where pictures show the agents."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from vmas.simulator.core import Box, Line
from vmas.simulator.environment import Environment

from hmarl.sdk.drawing.camera import Camera
from hmarl.sdk.drawing.figures import Figure
from hmarl.sdk.drawing.figures import draw as draw_figures

_SIZE_PIXELS = 400


def draw(environment: Environment, index: int) -> npt.NDArray[np.uint8]:
    """World ``index`` as a picture [400, 400, 3]."""
    world = environment.world
    figures = [_figure(entity, index) for entity in [*world.landmarks, *world.agents]]
    return draw_figures(figures, _camera(environment, index))


def agent_pixels(environment: Environment, index: int, own_picture: bool) -> npt.NDArray[np.float64]:
    """[N, 3] x, y and radius of the agents in the picture of world ``index``.

    Args:
        environment: VMAS's.
        index: of the world.
        own_picture: the last picture was VMAS's own instead of one of ``draw``.
    """
    shown = own_picture and environment.viewer is not None
    camera = _vmas_camera(environment.viewer) if shown else _camera(environment, index)
    return camera.discs(
        np.array([agent.state.pos[index].tolist() for agent in environment.agents]),
        np.array([agent.shape.circumscribed_radius() for agent in environment.agents]),
    )


def _camera(environment: Environment, index: int) -> Camera:
    """Like VMAS's own: the scenario's view, widened until it holds every agent."""
    world, scenario = environment.world, environment.scenario
    centre = tuple(float(value) for value in scenario.render_origin)
    reach = max(
        max(abs(agent.state.pos[index, axis].item() - centre[axis]) for axis in (0, 1)) for agent in world.agents
    )
    return Camera.square((centre[0], centre[1]), max(float(scenario.viewer_zoom), reach + 0.2), _SIZE_PIXELS)


def _vmas_camera(viewer: Any) -> Camera:
    """That of the picture which VMAS drew last."""
    left, right, _, top = viewer.bounds.tolist()
    return Camera(left, top, viewer.width / (right - left), viewer.height, viewer.width)


def _figure(entity: Any, index: int) -> Figure:
    shape = entity.shape
    boxy = isinstance(shape, Box | Line)
    size = (shape.length, 0.0 if isinstance(shape, Line) else shape.width) if boxy else (shape.radius, shape.radius)
    red, green, blue = (float(part) for part in entity.color[:3])
    return Figure(
        kind="box" if boxy else "disc",
        position=(entity.state.pos[index, 0].item(), entity.state.pos[index, 1].item()),
        rotation_rad=entity.state.rot[index, 0].item(),
        size=size,
        colour=(red, green, blue),
        hollow=bool(getattr(shape, "hollow", False)),
    )

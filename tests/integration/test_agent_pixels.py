"""Where pictures show the agents: at their pixels the picture has their colours, around them it does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from hmarl.sdk.environment import LocatesAgents, VectorEnvironment
from hmarl.sdk.environments import make
from hmarl.sdk.environments.mpe.drawing import agent_colour

SEEDS = np.array([1, 2])


def shown(
    environment: VectorEnvironment, colours: Sequence[npt.ArrayLike], opacity: float = 1.0
) -> npt.NDArray[np.float64]:
    """Asserts that agents who are there are drawn, in [0, 1] colours, where they are said to be, and only so large."""
    picture = environment.render(1)
    assert picture is not None
    assert isinstance(environment, LocatesAgents)
    places = environment.agent_pixels(1)
    assert places.shape == (len(environment.spec.agents), 3)
    for (x, y, radius), colour in zip(places, colours, strict=True):
        if np.isnan(x):
            continue
        for away in (0.0, 0.6 * radius):
            ground = picture[int(y), int(x + 1.5 * radius)]
            expected = opacity * 255 * np.asarray(colour) + (1 - opacity) * ground
            np.testing.assert_allclose(picture[int(y), int(x - away)], expected, atol=5.0)
        for beyond in (-1.5 * radius, 1.5 * radius):
            assert np.abs(picture[int(y), int(x + beyond)] - expected).max() > 10
    return places


@pytest.mark.parametrize("farthest", [0.8, 3.0])
def test_mpe(farthest: float) -> None:
    environment = make("mpe/simple_spread", 2)
    environment.reset(SEEDS)
    state = environment.get_state()
    assert state is not None
    places = [[-0.6, 0.1], [farthest, -0.5], [0.2, farthest]]
    environment.set_state({**state, "positions": np.array([[*places, *[[-1.0, -1.0]] * 3]] * 2)})
    found = shown(environment, [agent_colour(agent) for agent in range(3)], opacity=0.85)
    assert found[1, 0] > found[2, 0] > found[0, 0]
    assert found[1, 1] > found[0, 1] > found[2, 1]


def test_coordsum() -> None:
    environment = make("coordsum/3x10-30", 2)
    environment.reset(SEEDS)
    found = shown(environment, [agent_colour(agent) for agent in range(3)], opacity=0.85)
    assert np.diff(found[:, 0]).min() > 60


def test_lbfws() -> None:
    environment = make("lbfws/easy", 2, agents=3, size=7)
    environment.reset(SEEDS)
    state = environment.get_state()
    assert state is not None
    agents = np.array([[[0, 1], [3, 5], [6, 0]], [[0, 1], [3, 5], [-1, -1]]])
    energies = state["energies"].copy()
    energies[1, 2] = 0
    environment.set_state({**state, "agents": agents, "food": np.full_like(state["food"], -1), "energies": energies})
    found = shown(environment, [agent_colour(agent) for agent in range(3)])
    assert np.isnan(found).all(1).tolist() == [False, False, True]


def test_smax() -> None:
    pytest.importorskip("jaxmarl")
    environment = make("smax/3m", 2, max_steps=30)
    environment.reset(SEEDS)
    state = dict(environment.get_state() or {})
    state["unit_alive"][:, 2] = False
    state["unit_positions"][:, :3] = [[10, 16], [30, 4], [10, 28]]
    environment.set_state(state)
    found = shown(environment, [agent_colour(0)] * 3)
    assert np.isnan(found).all(1).tolist() == [False, False, True]


@pytest.mark.parametrize("opengl", [False, True])
def test_vmas(opengl: bool) -> None:
    pytest.importorskip("vmas")
    environment = make("vmas/balance", 2)
    environment.reset(SEEDS)
    environment._opengl = opengl  # type: ignore[attr-defined]
    environment.render(1)
    if environment._opengl != opengl:  # type: ignore[attr-defined]
        pytest.skip("OpenGL does not work here")
    colours = [agent.color[:3] for agent in environment._environment.agents]  # type: ignore[attr-defined]
    # VMAS itself draws agents half transparent.
    shown(environment, colours, opacity=0.5 if opengl else 1.0)
    environment.close()

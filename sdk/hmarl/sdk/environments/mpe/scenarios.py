"""The three MPE tasks: who acts, what is seen, what is rewarded, how an episode starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.environments.authoring import RandomStreams
from hmarl.sdk.environments.mpe.world import (
    MOVES,
    SENSITIVITY,
    Contacts,
    Floats,
    Integers,
    Observer,
    Rows,
    World,
    entry,
    joined,
    squared_length,
)
from hmarl.sdk.spaces import AgentSpec

MOVE_COUNT = 5
MpeSpace: TypeAlias = "spaces.Discrete[np.int64] | spaces.Box"  # old releases have no generic Discrete


class Scenario(ABC):
    """One task in B worlds.

    Attributes:
        defaults: the arguments that the task takes, with their defaults.
        world: the B worlds.
        observer: forms the observations.
        agents: the agents' specs, in mpe2's order and under mpe2's names.
        goals: [G, B] int64, for each agent that is shown a goal the number of that landmark; G may be 0.
        radii: the discs' radii, agents first.
        landmark_colours: [L, 3] as mpe2 has them, each in [0, 1].
    """

    defaults: ClassVar[dict[str, Any]]
    world: World
    observer: Observer
    agents: tuple[AgentSpec, ...]
    goals: Integers
    radii: tuple[float, ...]
    landmark_colours: Floats

    def restart(self, streams: RandomStreams, rows: Rows) -> None:
        """Start new episodes in the worlds ``rows``, with mpe2's draws in mpe2's order; ``refresh`` must follow."""
        world = self.world
        self.goals[:, rows], world.positions[:, :, rows] = drawn_episodes(self, streams, rows)
        world.velocities[:, :, rows] = 0.0
        world.words[:, :, rows] = 0.0

    @abstractmethod
    def control(self, actions: tuple[npt.NDArray[Any], ...]) -> None:
        """Turn checked actions (one array per group) into ``world.force`` and ``world.words``."""

    @abstractmethod
    def refresh(self) -> None:
        """Recompute what is derived from positions and goals, after every change of them."""

    @abstractmethod
    def rewards(self) -> Floats:
        """Rewards at the present positions: [N, B]."""

    def success(self) -> npt.NDArray[np.bool_] | None:
        """Whether the task is solved at the present positions, [B]; None where it knows no success."""
        return None


def drawn_episodes(scenario: Scenario, streams: RandomStreams, rows: Rows) -> tuple[Integers, Floats]:
    """What new episodes of the worlds ``rows`` draw: goals [G, R], and positions [2, N + L, R]."""
    goals = np.zeros((len(scenario.goals), len(rows)), dtype=np.int64)
    if len(goals):
        goals = streams.integers(rows, len(scenario.landmark_colours), len(goals)).T
    entities = scenario.world.positions.shape[1]
    positions = streams.uniforms(rows, 2 * entities) * 2.0 - 1.0
    return goals, positions.reshape(len(rows), entities, 2).T


class SimpleSpread(Scenario):
    """N agents cover N landmarks; all lose the distance of the nearest agent to each landmark, each loses 1 a touch."""

    defaults: ClassVar[dict[str, Any]] = {
        "N": 3,
        "local_ratio": 0.5,
        "max_cycles": 25,
        "continuous_actions": False,
        "terminate_on_success": False,
    }
    _radius = 0.15
    covered_below = 0.1

    def __init__(self, batch_size: int, arguments: dict[str, Any]) -> None:
        count: int = arguments["N"]
        self.local_ratio: float = arguments["local_ratio"]
        self.continuous: bool = arguments["continuous_actions"]
        self.world = World(
            batch_size, agents=count, landmarks=count, movers=slice(None), channels=0, speakers=0, goals=0
        )
        self.observer = Observer(self.world, [self._entries(agent, count) for agent in range(count)])
        self.goals = np.zeros((0, batch_size), dtype=np.int64)
        self.radii = (self._radius,) * count + (0.05,) * count
        self.landmark_colours = np.full((count, 3), 0.25)
        layout = (
            ("velocity", 2),
            ("position", 2),
            ("landmarks_relative", 2 * count),
            ("other_agents_relative", 2 * (count - 1)),
            ("other_agents_words", 2 * (count - 1)),
        )
        self.agents = tuple(_agent(f"agent_{i}", layout, _move_space(self.continuous)) for i in range(count))
        self.contacts = Contacts(self.world, count, self._radius + self._radius)
        self._nearest: Floats = np.zeros((count, batch_size))

    def _entries(self, agent: int, count: int) -> tuple[Rows, Rows]:
        positions, own = self.world.position_rows, self.world.position_rows[:, agent]
        others = [other for other in range(count) if other != agent]
        return joined(
            [
                entry(self.world.velocity_rows[:, agent]),
                entry(own),
                entry(positions[:, count:].T, own),
                entry(positions[:, others].T, own),
                entry(np.zeros(2 * len(others), dtype=np.intp)),  # mpe2 shows words though all agents are silent
            ]
        )

    def control(self, actions: tuple[npt.NDArray[Any], ...]) -> None:
        """Set the forces and words that the actions ask for."""
        _move(self.world, actions[0], self.continuous)
        self.contacts.push()

    def refresh(self) -> None:
        """Compute anew what observations and rewards are made of."""
        self.contacts.measure()
        agents, landmarks = self.world.agent_positions, self.world.landmark_positions
        squares = squared_length(agents[:, :, None] - landmarks[:, None])
        # The root is monotonic: the root of the smallest square is the smallest distance, to the last bit.
        np.sqrt(np.minimum.reduce(squares, axis=0), out=self._nearest)

    def rewards(self) -> Floats:
        """[N, B] every agent's own reward."""
        team = np.zeros(self._nearest.shape[1])
        for distance in self._nearest:
            team -= distance
        own = np.asarray(-1.0 * self.contacts.counts() * self.local_ratio, np.float64)
        own += team * (1 - self.local_ratio)
        return own

    def success(self) -> npt.NDArray[np.bool_]:
        """Every landmark has an agent within 0.1."""
        return np.asarray((self._nearest < self.covered_below).all(axis=0))


class SimpleReference(Scenario):
    """Two agents that move and speak; each knows only the landmark that the other one must go to."""

    defaults: ClassVar[dict[str, Any]] = {"local_ratio": 0.5, "max_cycles": 25, "continuous_actions": False}
    _channels = 10

    def __init__(self, batch_size: int, arguments: dict[str, Any]) -> None:
        self.local_ratio: float = arguments["local_ratio"]
        self.continuous: bool = arguments["continuous_actions"]
        channels = self._channels
        self.world = World(
            batch_size, agents=2, landmarks=3, movers=slice(None), channels=channels, speakers=2, goals=2
        )
        self.observer = Observer(self.world, [self._entries(agent) for agent in range(2)])
        self.goals = np.zeros((2, batch_size), dtype=np.int64)
        self.radii = (0.05,) * 5
        self.landmark_colours = 0.25 + 0.5 * np.eye(3)
        layout = (("velocity", 2), ("landmarks_relative", 6), ("goal_colour", 3), ("other_agent_word", channels))
        space: MpeSpace = spaces.Discrete(MOVE_COUNT * channels)
        if self.continuous:
            space = spaces.Box(0.0, 1.0, (MOVE_COUNT + channels,), np.float32)
        self.agents = tuple(_agent(f"agent_{i}", layout, space) for i in range(2))
        self._columns = np.arange(batch_size)
        self._targets: Floats = np.zeros((2, 2, batch_size))

    def _entries(self, agent: int) -> tuple[Rows, Rows]:
        world = self.world
        return joined(
            [
                entry(world.velocity_rows[:, agent]),
                entry(world.position_rows[:, 2:].T, world.position_rows[:, agent]),
                entry(world.goal_colour_rows[:, agent]),
                entry(world.word_rows[:, 1 - agent]),
            ]
        )

    def control(self, actions: tuple[npt.NDArray[Any], ...]) -> None:
        """Set the forces and words that the actions ask for."""
        (chosen,) = actions
        if self.continuous:
            _move(self.world, chosen[:, :, :MOVE_COUNT], True)
            self.world.words[...] = chosen[:, :, MOVE_COUNT:].T
        else:
            say, move = np.divmod(chosen, MOVE_COUNT)
            _move(self.world, move, False)
            _say(self.world, say)

    def refresh(self) -> None:
        """Compute anew what observations and rewards are made of."""
        self.world.goal_colours[...] = self.landmark_colours.T[:, self.goals]
        # Agent 0's goal is where agent 1 must go, and the other way round.
        self._targets[...] = self.world.landmark_positions[:, self.goals[::-1], self._columns]

    def rewards(self) -> Floats:
        """[N, B] every agent's own reward."""
        distance = np.sqrt(squared_length(self.world.agent_positions - self._targets))
        # An agent's own reward is about its partner's way to the goal that it alone knows.
        own = -distance[::-1]
        team = (own[0] + own[1]) / 2
        rewards: Floats = team * (1 - self.local_ratio) + own * self.local_ratio
        return rewards


class SimpleSpeakerListener(Scenario):
    """The speaker, which cannot move, knows the goal and says one of three words; the listener must go there."""

    defaults: ClassVar[dict[str, Any]] = {"max_cycles": 25, "continuous_actions": False}
    _channels = 3

    def __init__(self, batch_size: int, arguments: dict[str, Any]) -> None:
        self.continuous: bool = arguments["continuous_actions"]
        channels = self._channels
        self.world = world = World(
            batch_size, agents=2, landmarks=3, movers=slice(1, 2), channels=channels, speakers=1, goals=1
        )
        speaker = entry(world.goal_colour_rows[:, 0])
        listener = joined(
            [
                entry(world.velocity_rows[:, 1]),
                entry(world.position_rows[:, 2:].T, world.position_rows[:, 1]),
                entry(world.word_rows[:, 0]),
            ]
        )
        self.observer = Observer(world, [speaker, listener])
        self.goals = np.zeros((1, batch_size), dtype=np.int64)
        self.radii = (0.075,) * 2 + (0.04,) * 3
        self.landmark_colours = 0.15 + 0.5 * np.eye(3)
        words: MpeSpace = spaces.Discrete(channels)
        if self.continuous:
            words = spaces.Box(0.0, 1.0, (channels,), np.float32)
        heard = (("velocity", 2), ("landmarks_relative", 6), ("speaker_word", channels))
        self.agents = (
            _agent("speaker_0", (("goal_colour", 3),), words),
            _agent("listener_0", heard, _move_space(self.continuous)),
        )
        self._columns = np.arange(batch_size)
        self._target: Floats = np.zeros((2, batch_size))

    def control(self, actions: tuple[npt.NDArray[Any], ...]) -> None:
        """Set the forces and words that the actions ask for."""
        word, move = actions
        _move(self.world, move, self.continuous)
        if self.continuous:
            self.world.words[...] = word.T
        else:
            _say(self.world, word)

    def refresh(self) -> None:
        """Compute anew what observations and rewards are made of."""
        self.world.goal_colours[...] = self.landmark_colours.T[:, self.goals]
        self._target[...] = self.world.landmark_positions[:, self.goals[0], self._columns]

    def rewards(self) -> Floats:
        """[N, B] every agent's own reward."""
        squares = squared_length(self.world.agent_positions[:, 1] - self._target)
        return np.stack([-squares, -squares])


SCENARIOS: dict[str, type[SimpleSpread | SimpleReference | SimpleSpeakerListener]] = {
    "simple_spread": SimpleSpread,
    "simple_reference": SimpleReference,
    "simple_speaker_listener": SimpleSpeakerListener,
}


def _agent(name: str, layout: tuple[tuple[str, int], ...], space: MpeSpace) -> AgentSpec:
    layout = tuple(part for part in layout if part[1])
    return AgentSpec(name, sum(size for _, size in layout), space, observation_layout=layout)


def _move_space(continuous: bool) -> MpeSpace:
    return spaces.Box(0.0, 1.0, (MOVE_COUNT,), np.float32) if continuous else spaces.Discrete(MOVE_COUNT)


def _move(world: World, moves: npt.NDArray[Any], continuous: bool) -> None:
    """Set the force of the movers' actions: int64 [B, M], or float32 [B, M, 5] (nothing, left, right, down, up)."""
    if not continuous:
        np.take(MOVES, moves.T, axis=1, out=world.force, mode="clip")
        return
    # In float32, as mpe2 subtracts.
    np.subtract(moves[:, :, 2].T, moves[:, :, 1].T, out=world.force[0])
    np.subtract(moves[:, :, 4].T, moves[:, :, 3].T, out=world.force[1])
    world.force *= SENSITIVITY


def _say(world: World, words: Integers) -> None:
    """Set the speakers' words: int64 [B, S]."""
    world.words[...] = np.arange(len(world.words))[:, None, None] == words.T

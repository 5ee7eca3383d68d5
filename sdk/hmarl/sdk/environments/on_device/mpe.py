"""The MPE tasks in torch, see ``hmarl.sdk.environments.mpe``, whose states these take and give.

The numbers lie as they do there: one matrix [rows, B] of float64, a row a coordinate. Which rows are what, and what an
observation is made of, is read from one world in NumPy. Sums are formed in the same order, so that only the softplus of
a contact can differ, in its last digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.environments.authoring import EpisodeStreams, RandomStreams, checked_state
from hmarl.sdk.environments.mpe import MpeEnvironment
from hmarl.sdk.environments.mpe.scenarios import (
    MOVE_COUNT,
    Scenario,
    SimpleReference,
    SimpleSpeakerListener,
    SimpleSpread,
    drawn_episodes,
)
from hmarl.sdk.environments.mpe.world import (
    CONTACT_FORCE,
    CONTACT_MARGIN,
    DAMPING,
    MOVES,
    SENSITIVITY,
    TIME_STEP_S,
    TINY,
    Contacts,
    World,
)
from hmarl.sdk.environments.on_device import actions_on, device_named, uploaded


class DeviceWorld:
    """Positions, velocities, words and goal colours of B worlds on a device.

    Args:
        world: one in NumPy, which is laid out alike.
        batch_size: B.
        device: where the worlds are.

    Attributes:
        velocities: [2, N, B]; positions: [2, N + L, B], agents first; words: [C, S, B]; goal_colours: [3, goals, B].
            Views into ``rows``.
        force: [2, M, B], what the movers' actions exert.
    """

    def __init__(self, world: World, batch_size: int, device: torch.device) -> None:
        self.rows = torch.zeros(len(world.rows), batch_size, dtype=torch.float64, device=device)

        def part(numbered: npt.NDArray[np.intp]) -> Tensor:
            start = int(numbered.flat[0]) if numbered.size else 0
            return self.rows[start : start + numbered.size].view(*numbered.shape, batch_size)

        self.velocities, self.positions = part(world.velocity_rows), part(world.position_rows)
        self.words, self.goal_colours = part(world.word_rows), part(world.goal_colour_rows)
        self.agent_positions = self.positions[:, : self.velocities.shape[1]]
        self.landmark_positions = self.positions[:, self.velocities.shape[1] :]
        self._moving_positions = self.agent_positions[:, world.movers]
        self._moving_velocities = self.velocities[:, world.movers]
        self.force = torch.zeros_like(self._moving_positions)
        self._moves = uploaded(MOVES, device)
        self._word_numbers = torch.arange(len(self.words), device=device)[:, None, None]

    def advance(self) -> None:
        """One step of 0.1 s, as ``World.advance``."""
        self._moving_positions += self._moving_velocities * TIME_STEP_S
        self._moving_velocities *= 1 - DAMPING
        self._moving_velocities += self.force * TIME_STEP_S

    def move(self, moves: Tensor, continuous: bool) -> None:
        """Set the force of the movers' actions: int64 [B, M], or float32 [B, M, 5] (nothing, left, right, down, up)."""
        if continuous:
            along = torch.stack([moves[:, :, 2] - moves[:, :, 1], moves[:, :, 4] - moves[:, :, 3]])
            self.force = along.transpose(1, 2).double() * SENSITIVITY
        else:
            self.force = self._moves[:, moves.T]

    def say(self, words: Tensor) -> None:
        """Set the speakers' words: int64 [B, S]."""
        self.words.copy_(self._word_numbers == words.T)


class DeviceContacts:
    """The contacts between all pairs of agents, as ``Contacts``.

    Attributes:
        touching: [P, B] bool after ``measure``.
    """

    def __init__(self, world: DeviceWorld, contacts: Contacts) -> None:
        device = world.rows.device
        self._world, self._reach = world, contacts.reach
        self._first, self._second = (uploaded(each, device) for each in contacts.pairs)
        self._pairs_of, self._directed_of = (uploaded(each, device) for each in contacts.of_agents)
        self._delta = torch.zeros(2, len(self._first), world.rows.shape[1], dtype=torch.float64, device=device)
        self._distance = torch.zeros_like(self._delta[0])
        self.touching = torch.zeros_like(self._distance, dtype=torch.bool)

    def measure(self) -> None:
        """Take up the agents' present positions."""
        positions = self._world.agent_positions
        self._delta = positions.index_select(1, self._first) - positions.index_select(1, self._second)
        self._distance = squared_length(self._delta).sqrt()
        self.touching = self._distance < self._reach

    def counts(self) -> Tensor:
        """[N, B] how many others each agent touches."""
        return self.touching[self._pairs_of].sum(1)

    def push(self) -> None:
        """Add the contact forces to ``world.force``."""
        overlap = (self._reach - self._distance) / CONTACT_MARGIN
        overlap = torch.logaddexp(torch.zeros_like(overlap), overlap) * CONTACT_MARGIN
        force = self._delta * CONTACT_FORCE / self._distance.clamp(min=TINY) * overlap
        by_agent = torch.cat([force, -force], dim=1)[:, self._directed_of]
        for partner in range(by_agent.shape[2]):
            self._world.force = self._world.force + by_agent[:, :, partner]


def squared_length(difference: Tensor) -> Tensor:
    """x² + y² of [2, ...] differences."""
    return difference[0].square() + difference[1].square()


class Task(Protocol):
    """One task in B worlds."""

    def control(self, actions: tuple[Tensor, ...]) -> None:
        """Turn actions (one tensor per group) into ``world.force`` and ``world.words``."""
        ...

    def refresh(self) -> None:
        """Recompute what is derived from positions and goals."""
        ...

    def rewards(self) -> Tensor:
        """[N, B]."""
        ...

    def success(self) -> Tensor | None:
        """[B] bool; None where the task knows no success."""
        ...


class Spread:
    """``SimpleSpread``."""

    def __init__(self, scenario: SimpleSpread, world: DeviceWorld, goals: Tensor) -> None:
        self._world, self._continuous, self._local_ratio = world, scenario.continuous, scenario.local_ratio
        self._covered_below = scenario.covered_below
        self._contacts = DeviceContacts(world, scenario.contacts)
        self._nearest = torch.zeros_like(world.landmark_positions[0])

    def control(self, actions: tuple[Tensor, ...]) -> None:
        """Forces of moves and contacts."""
        self._world.move(actions[0], self._continuous)
        self._contacts.push()

    def refresh(self) -> None:
        """Contacts, and the distance of the nearest agent to each landmark."""
        self._contacts.measure()
        agents, landmarks = self._world.agent_positions, self._world.landmark_positions
        self._nearest = squared_length(agents[:, :, None] - landmarks[:, None]).amin(0).sqrt()

    def rewards(self) -> Tensor:
        """[N, B] every agent's own reward."""
        team = torch.zeros_like(self._nearest[0])
        for distance in self._nearest:
            team = team - distance
        return -1.0 * self._contacts.counts() * self._local_ratio + team * (1 - self._local_ratio)

    def success(self) -> Tensor:
        """Every landmark has an agent within 0.1."""
        return (self._nearest < self._covered_below).all(0)


class Reference:
    """``SimpleReference``."""

    def __init__(self, scenario: SimpleReference, world: DeviceWorld, goals: Tensor) -> None:
        self._world, self._continuous, self._local_ratio = world, scenario.continuous, scenario.local_ratio
        self._goals, self._colours = goals, uploaded(scenario.landmark_colours.T.copy(), goals.device)
        self._columns = torch.arange(goals.shape[1], device=goals.device)
        self._targets = torch.zeros_like(world.agent_positions)

    def control(self, actions: tuple[Tensor, ...]) -> None:
        """Forces and words."""
        (chosen,) = actions
        if self._continuous:
            self._world.move(chosen[:, :, :MOVE_COUNT], True)
            self._world.words.copy_(chosen[:, :, MOVE_COUNT:].permute(2, 1, 0))
        else:
            self._world.move(chosen % MOVE_COUNT, False)
            self._world.say(chosen // MOVE_COUNT)

    def refresh(self) -> None:
        """Colours and targets of the goals."""
        self._world.goal_colours.copy_(self._colours[:, self._goals])
        self._targets = self._world.landmark_positions[:, self._goals.flip(0), self._columns]

    def rewards(self) -> Tensor:
        """[N, B] every agent's own reward."""
        own = -squared_length(self._world.agent_positions - self._targets).sqrt().flip(0)
        team = (own[0] + own[1]) / 2
        return team * (1 - self._local_ratio) + own * self._local_ratio

    def success(self) -> None:
        """It knows none."""


class SpeakerListener:
    """``SimpleSpeakerListener``."""

    def __init__(self, scenario: SimpleSpeakerListener, world: DeviceWorld, goals: Tensor) -> None:
        self._world, self._continuous = world, scenario.continuous
        self._goals, self._colours = goals, uploaded(scenario.landmark_colours.T.copy(), goals.device)
        self._columns = torch.arange(goals.shape[1], device=goals.device)
        self._target = torch.zeros_like(world.agent_positions[:, 0])

    def control(self, actions: tuple[Tensor, ...]) -> None:
        """Forces and words."""
        word, move = actions
        self._world.move(move, self._continuous)
        if self._continuous:
            self._world.words.copy_(word.permute(2, 1, 0))
        else:
            self._world.say(word)

    def refresh(self) -> None:
        """Colour and target of the goal."""
        self._world.goal_colours.copy_(self._colours[:, self._goals])
        self._target = self._world.landmark_positions[:, self._goals[0], self._columns]

    def rewards(self) -> Tensor:
        """[N, B] every agent's own reward."""
        squares = squared_length(self._world.agent_positions[:, 1] - self._target)
        return torch.stack([-squares, -squares])

    def success(self) -> None:
        """It knows none."""


def _task(scenario: Scenario, world: DeviceWorld, goals: Tensor) -> Task:
    if isinstance(scenario, SimpleSpread):
        return Spread(scenario, world, goals)
    if isinstance(scenario, SimpleReference):
        return Reference(scenario, world, goals)
    assert isinstance(scenario, SimpleSpeakerListener)
    return SpeakerListener(scenario, world, goals)


class DeviceMpe:
    """B copies of one MPE task on a torch device; a ``VectorEnvironment`` whose arrays are tensors.

    Args:
        batch_size: B.
        rules: one copy in NumPy, whose spec, layout and pictures these are.
        device: torch device.
    """

    def __init__(self, batch_size: int, rules: MpeEnvironment, device: str) -> None:
        self.batch_size = batch_size
        self.device = device_named(device, rules.spec.name)
        self.spec = rules.spec_with(backend="torch", device=device)
        self._rules = rules
        scenario = rules.scenario
        self._world = world = DeviceWorld(scenario.world, batch_size, self.device)
        self._goals = torch.zeros(len(scenario.goals), batch_size, dtype=torch.int64, device=self.device)
        self._task = _task(scenario, world, self._goals)
        self._plus, self._minus = (uploaded(rows, self.device) for rows in scenario.observer.entries)
        self._steps = np.zeros(batch_size, dtype=np.int64)
        self._active = torch.ones(batch_size, len(self.spec.agents), dtype=torch.bool, device=self.device)
        self._streams = EpisodeStreams(batch_size)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes, those of the NumPy backend.

        Args:
            seeds: [B] integers, at least 0.

        Raises:
            UsageError: seeds of another shape, or negative.
        """
        self._restart(self._streams.begin(seeds), np.arange(self.batch_size))
        return self._observe()

    def step(self, actions: tuple[Any, ...]) -> StepResult:
        """Advance every environment by 0.1 s; those whose episode has ended start the next one.

        Args:
            actions: tensors or arrays, as of the NumPy backend.

        Raises:
            UsageError: before the first ``reset``, or actions that ``actions_on`` refuses; nothing has then changed.
        """
        streams, task = self._streams.running("step"), self._task
        task.control(actions_on(self.device, actions, self.spec.groups, self.batch_size))
        self._world.advance()
        task.refresh()
        self._steps += 1
        rewards, success = task.rewards().T.float().contiguous(), task.success()
        cut_off = self._steps >= self._rules.horizon
        terminated, solved = torch.zeros_like(self._active[:, 0]), np.zeros_like(cut_off)
        if self._rules.terminates and success is not None:
            solved = success.cpu().numpy() & ~cut_off  # the one thing that only the device knows
            terminated = uploaded(solved, self.device)
        truncated = uploaded(cut_off, self.device) if cut_off.any() else torch.zeros_like(terminated)
        ended = np.flatnonzero(cut_off | solved)
        observation, final = self._observe(), None
        if len(ended):
            self._restart(streams, ended)
            observation, final = self._observe(), observation
        return StepResult(observation, rewards, terminated, truncated, final, success)

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that determines the future, as new arrays: those of the NumPy backend, which may go on from it.

        Raises:
            UsageError: before the first ``reset``.
        """
        return {**self._world_state(), **self._streams.running("get_state").get_state()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Continue where ``get_state`` was called, of either backend.

        Raises:
            UsageError: as of the NumPy backend; nothing has then changed.
        """
        like = {**self._world_state(), **self._streams.layout()}
        saved, world = checked_state(state, like), self._world
        self._rules.check_goals(saved["goals"])
        self._streams.resume(saved)
        for part, name in ((world.positions, "positions"), (world.velocities, "velocities"), (world.words, "words")):
            part.copy_(uploaded(saved[name].T.copy(), self.device))
        self._goals.copy_(uploaded(saved["goals"].T.copy(), self.device))
        self._steps = saved["steps"]
        self._task.refresh()
        return self._observe()

    def render(self, index: int = 0) -> npt.NDArray[np.uint8]:
        """The picture of environment ``index`` that the NumPy backend draws."""
        self._show(index)
        return self._rules.render()

    def agent_pixels(self, index: int = 0) -> npt.NDArray[np.float64]:
        """[N, 3] x, y and radius of the agents in that picture; see ``LocatesAgents``."""
        self._show(index)
        return self._rules.agent_pixels()

    def close(self) -> None:
        """Nothing to free."""

    def _restart(self, streams: RandomStreams, rows: npt.NDArray[np.intp]) -> None:
        world, there = self._world, uploaded(rows, self.device)
        goals, positions = drawn_episodes(self._rules.scenario, streams, rows)
        self._goals[:, there] = uploaded(goals, self.device)
        world.positions[:, :, there] = uploaded(positions, self.device)
        world.velocities[:, :, there] = 0.0
        world.words[:, :, there] = 0.0
        self._task.refresh()
        self._steps[rows] = 0

    def _observe(self) -> Observation:
        rows = self._world.rows
        state = (rows.index_select(0, self._plus) - rows.index_select(0, self._minus)).T.float().contiguous()
        observations = self._rules.by_group(state)
        return Observation(observations, (None,) * len(observations), state, self._active)

    def _world_state(self) -> dict[str, npt.NDArray[Any]]:
        world = self._world
        parts = {
            "positions": world.positions,
            "velocities": world.velocities,
            "words": world.words,
            "goals": self._goals,
        }
        copies: dict[str, npt.NDArray[Any]] = {
            name: part.cpu().numpy().T.copy(order="C") for name, part in parts.items()
        }
        return {**copies, "steps": self._steps.copy()}

    def _show(self, index: int) -> None:
        """Have the one copy in NumPy look like environment ``index``."""
        scenario = self._rules.scenario
        scenario.world.rows[:, 0] = self._world.rows[:, index].cpu().numpy()
        scenario.goals[:, 0] = self._goals[:, index].cpu().numpy()

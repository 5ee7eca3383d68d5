"""What a team under faults sees and does, held against each agent by itself: its messages, outages and fallback."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from diary import BOX
from hmarl.sdk import Observation, UsageError
from hmarl.sdk.fallback import Situation
from hmarl.sdk.faults import parse_faults
from hmarl.sdk.faults.draws import Chance, Draws
from hmarl.sdk.faults.injector import Injector
from hmarl.sdk.faults.model import AgentFaults, Outage
from hmarl.sdk.spaces import AgentGroup, AgentSpec, ImageFormat

BATCH, SIZE, CHOICES = 5, 3, 4
IDS = ("a", "arm", "b", "leg")  # no group's agents stand side by side
AGENTS = [
    AgentSpec(name, SIZE, BOX) if name in ("arm", "leg") else AgentSpec(name, SIZE, spaces.Discrete(CHOICES), True)
    for name in IDS
]
GROUPS = [AgentGroup((0, 2), AGENTS[0]), AgentGroup((1, 3), AGENTS[1])]
SEEDS = np.arange(40, 40 + BATCH)
EVERYTHING = (
    "delay=1..3,loss=0.2,noise=0.1,freeze=0.05:4,action_delay=0..2,action_loss=0.1,out=0.04:5,restart=0.06:3,"
    "fallback=hold:2;b:out=3..6,noise=0.5,action_delay=1,fallback=noop:1;leg:restart=2..4,noise=0,delay=2,loss=0"
)


@dataclass
class PlainMessages:
    """What one agent hears, or what is heard of it: the newest message that has arrived."""

    clock: int = 0
    sent: int = -1
    held: Any = None
    under_way: list[tuple[int, int, Any]] = field(default_factory=list)

    def send(self, message: Any, late: int, lost: bool, deaf: bool = False) -> bool:
        self.clock += 1
        if not lost:
            self.under_way.append((self.clock, self.clock + late, message))
        if deaf:
            self.under_way = [each for each in self.under_way if each[1] > self.clock]
        due = [each for each in self.under_way if each[1] <= self.clock and each[0] > self.sent]
        if due:
            self.sent, _, self.held = max(due, key=lambda each: each[0])
        return bool(due)

    def begin(self, message: Any) -> None:
        self.sent, self.held, self.under_way = self.clock, message, []


@dataclass
class PlainOutage:
    """When one agent is out for one reason."""

    outage: Outage
    left: int = 0

    def now(self, step: int, number: float) -> bool:
        if not self.outage.by_chance:
            return self.outage.first <= step <= self.outage.last
        if self.left == 0 and number < np.float32(self.outage.probability):
            self.left = self.outage.steps
        out = self.left > 0
        self.left -= out
        return out


class PlainAgent:
    """One agent of one copy."""

    def __init__(self, spec: AgentSpec, faults: AgentFaults) -> None:
        self.spec, self.faults = spec, faults
        self.senses, self.hands = PlainMessages(), PlainMessages()
        self.outages = {
            Chance.FREEZE: PlainOutage(faults.freeze),
            Chance.OUT: PlainOutage(faults.out),
            Chance.RESTART: PlainOutage(faults.restart),
        }
        self.down = self.forgot = self.gone = self.frozen = False
        self.last: Any = None
        self.age = math.inf

    def look(self, step: int, numbers: dict[Chance, float]) -> None:
        out = {chance: outage.now(step, numbers[chance]) for chance, outage in self.outages.items()}
        self.forgot, self.down = self.down and not out[Chance.RESTART], out[Chance.RESTART]
        self.gone, self.frozen = out[Chance.OUT] or self.down, out[Chance.FREEZE]

    def begin_episode(self, step: int, numbers: dict[Chance, float], message: Any) -> None:
        for outage in self.outages.values():
            outage.left = 0
        self.down = False
        self.look(step, numbers)
        self.appear(message)

    def appear(self, message: Any) -> None:
        self.senses.begin(message)
        self.hands.begin(self.hands.held)
        self.age = math.inf

    def see(self, step: int, numbers: dict[Chance, float], message: Any, active: bool, appeared: bool) -> None:
        self.look(step, numbers)
        lost = numbers[Chance.LOSS] < np.float32(self.faults.loss) or not active
        deaf = self.frozen or self.gone
        self.senses.send(message, late_by(self.faults.delay, numbers[Chance.DELAY]), lost, deaf)
        if appeared:
            self.appear(message)

    def act(self, step: int, numbers: dict[Chance, float], action: Any, mask: Any, active: bool) -> Any:
        lost = numbers[Chance.ACTION_LOSS] < np.float32(self.faults.action_loss) or self.gone
        arrived = self.hands.send(action, late_by(self.faults.action_delay, numbers[Chance.ACTION_DELAY]), lost)
        fresh = arrived and (mask is None or mask[self.hands.held])
        self.age = 0.0 if fresh else self.age + 1.0
        if fresh:
            self.last = self.hands.held
        if not active:
            return action
        if fresh:
            return self.hands.held
        last = None if math.isinf(self.age) else np.asarray(self.last)
        situation = Situation(step, self.spec.action_space_model, mask, last, age_steps=self.age)
        return self.faults.fallback.decide(situation)


def late_by(between: tuple[int, int], number: float) -> int:
    return between[0] + math.floor(float(number) * (between[1] - between[0] + 1))


class Team:
    """The injector, and beside it each agent by itself, through the same steps of a random environment."""

    def __init__(self, faults: str, seed: int = 0, agents: list[AgentSpec] = AGENTS) -> None:
        self.model, self.random = parse_faults(faults), np.random.default_rng(seed)
        self.injector = Injector(self.model, agents, GROUPS, BATCH)
        self.plain = [[PlainAgent(each, self.model.of(each.id)) for each in agents] for _ in range(BATCH)]
        self.draws = Draws(IDS, BATCH)
        self.now = self.observation()
        self.mask = np.ones((BATCH, 2, CHOICES), np.bool_)

    def observation(self) -> Observation:
        blocks = tuple(self.random.normal(size=(BATCH, 2, SIZE)).astype(np.float32) for _ in GROUPS)
        mask = self.random.random((BATCH, 2, CHOICES)) < 0.7
        mask[..., 1] |= ~mask.any(-1)
        state = self.random.normal(size=(BATCH, 2)).astype(np.float32)
        return Observation(blocks, (mask, None), state, self.random.random((BATCH, len(IDS))) < 0.85)

    def numbers(self, row: int, agent: int) -> dict[Chance, float]:
        return {chance: self.draws.uniform(chance)[row, agent] for chance in Chance}

    def each(self) -> list[tuple[int, int, int, int]]:
        """Row, agent, group and place in it."""
        return [
            (row, agent, group, place)
            for row in range(BATCH)
            for group, its in enumerate(GROUPS)
            for place, agent in enumerate(its.agents)
        ]

    def message(self, row: int, agent: int, group: int, place: int) -> Any:
        noise = np.float32(self.model.of(IDS[agent]).noise)
        drawn = self.draws.normal(np.array([agent]), SIZE)[row, 0]
        mask = self.now.action_masks[group]
        return self.now.observations[group][row, place] + noise * drawn, None if mask is None else mask[row, place]

    def begin(self, first_step: int = 0) -> None:
        self.draws.begin(SEEDS, first_step)
        self.compare(self.injector.begin(SEEDS, self.now, first_step), new=range(BATCH))

    def step(self) -> None:
        before, self.now = self.now, self.observation()
        self.draws.advance()
        shown = self.injector.seen(self.now)
        for row, agent, group, place in self.each():
            active = bool(self.now.active[row, agent])
            self.plain[row][agent].see(
                int(self.draws.steps[row]),
                self.numbers(row, agent),
                self.message(row, agent, group, place),
                active,
                active and not before.active[row, agent],
            )
        self.compare(shown)

    def begin_next(self, rows: np.ndarray) -> None:
        renewed, before = self.observation(), self.now
        new = np.isin(np.arange(BATCH), rows)

        def merged(first: np.ndarray, other: np.ndarray) -> np.ndarray:
            return np.where(new.reshape(-1, *(1,) * (first.ndim - 1)), first, other)

        masks = renewed.action_masks[0], before.action_masks[0]
        blocks = tuple(map(merged, renewed.observations, before.observations))
        self.now = Observation(
            blocks,
            (merged(*masks), None),
            before.state,
            merged(renewed.active, before.active),  # type: ignore[arg-type]
        )
        self.draws.next_episode(rows)
        self.compare(self.injector.begin_next(rows, self.now), new=rows)

    def act(self) -> None:
        choices = (self.random.random(self.mask.shape) * self.mask).argmax(-1)  # by the mask that they are shown
        arms = self.random.uniform(2, 9, (BATCH, 2, 2)).astype(np.float32)
        steps = self.draws.steps.copy()
        done = self.injector.done([choices, arms])
        for row, agent, group, place in self.each():
            mask = self.now.action_masks[group]
            expected = self.plain[row][agent].act(
                int(steps[row]),
                self.numbers(row, agent),
                (choices, arms)[group][row, place],
                None if mask is None else mask[row, place],
                bool(self.now.active[row, agent]),
            )
            assert np.array_equal(done[group][row, place], expected), (row, IDS[agent], int(steps[row]))
            assert self.injector.fresh[row, agent] == (self.plain[row][agent].age == 0.0)
        assert [each.dtype for each in done] == [np.int64, np.float32]

    def compare(self, shown: Observation, new: Any = ()) -> None:
        for row, agent, group, place in self.each():
            plain = self.plain[row][agent]
            if row in new:
                step = int(self.draws.steps[row])
                plain.begin_episode(step, self.numbers(row, agent), self.message(row, agent, group, place))
            mask = self.now.action_masks[group]
            truth = self.now.observations[group][row, place], None if mask is None else mask[row, place]
            expected = plain.senses.held if self.now.active[row, agent] else truth
            assert np.array_equal(shown.observations[group][row, place], expected[0]), (row, IDS[agent])
            if mask is not None:
                assert np.array_equal(shown.action_masks[group][row, place], expected[1])  # type: ignore[index]
            assert self.injector.ages[row, agent] == plain.senses.clock - plain.senses.sent
            if shown.restarted is not None:
                assert shown.restarted[row, agent] == plain.forgot
        self.mask = np.asarray(shown.action_masks[0])
        assert shown.observations[0].dtype == np.float32
        assert shown.state is self.now.state
        assert shown.active is self.now.active

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.act()
            self.step()
            ended = np.flatnonzero(self.random.random(BATCH) < 0.08)
            if len(ended):
                self.begin_next(ended)


@pytest.mark.parametrize(
    "faults",
    [
        EVERYTHING,
        "delay=0..2",
        "delay=2;a:delay=1,loss=0.3",
        "freeze=2..3;arm:freeze=0.2:2",
        "out=0.2:1;leg:out=0.3:3",
        "restart=0.15:2;a:restart=1",
        "noise=1;a:noise=0;arm:noise=0.5",
        "action_delay=2",
        "action_delay=0..3;b:fallback=noop:2;arm:action_delay=1,fallback=hold:1",
        "action_loss=0.4,fallback=zero;leg:action_loss=0.1,fallback=hold:3",
        "b:action_loss=0.5",
    ],
)
def test_a_team_is_each_agent_by_itself(faults: str) -> None:
    team = Team(faults)
    layout = {name: (array.shape, array.dtype) for name, array in team.injector.get_state().items()}
    team.begin()
    team.play(45)
    assert {name: (array.shape, array.dtype) for name, array in team.injector.get_state().items()} == layout


def test_an_episode_that_is_joined_meets_the_faults_of_its_step() -> None:
    team = Team("freeze=7..8,restart=6,loss=0.5,out=0.2:2;b:out=9..11")
    team.begin(first_step=6)
    team.play(12)


def test_what_is_saved_is_apart_from_what_goes_on_and_leads_to_the_same() -> None:
    team = Team(EVERYTHING, seed=3)
    team.begin()
    team.play(21)
    saved = team.injector.get_state()
    before = {name: array.copy() for name, array in saved.items()}
    twin = deepcopy(team)
    twin.injector = Injector(team.model, AGENTS, GROUPS, BATCH)
    twin.injector.begin(SEEDS + 1, twin.observation())
    twin.compare(twin.injector.set_state({name: array.copy() for name, array in saved.items()}, twin.now))
    assert same(twin.injector.get_state(), before)
    team.play(20)
    twin.play(20)
    assert same(saved, before), "what was saved has changed meanwhile"
    assert not same(team.injector.get_state(), before)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(array, other[name]) for name, array in one.items())


def test_who_is_told_of_restarts_and_of_ages() -> None:
    assert Injector(parse_faults("delay=2"), AGENTS, GROUPS, BATCH).begin(SEEDS, Team("none").now).restarted is None
    team = Team("b:restart=1")
    assert team.injector.begin(SEEDS, team.now).restarted is not None
    late = Team("arm:delay=2")
    present = np.ones((BATCH, len(IDS)), np.bool_)
    late.now = Observation(late.now.observations, late.now.action_masks, late.now.state, present)
    late.injector.begin(SEEDS, late.now)
    ages = [late.injector.ages[0].tolist()]
    for _ in range(4):
        late.injector.seen(late.now)
        ages.append(late.injector.ages[0].tolist())
    assert ages == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0], [0, 2, 0, 0], [0, 2, 0, 0]]
    assert late.injector.ages.dtype == np.int64


def test_faults_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="unknown agent 'z'"):
        Injector(parse_faults("z:loss=0.1"), AGENTS, GROUPS, BATCH)
    with pytest.raises(UsageError, match="faults: fallback of 'arm'"):
        Injector(parse_faults("action_loss=0.1,fallback=noop:1"), AGENTS, GROUPS, BATCH)
    seeing = AgentSpec("eye", 12, spaces.Discrete(2), image=ImageFormat(2, 2, 3))
    group = [AgentGroup((0,), seeing)]
    with pytest.raises(UsageError) as refused:
        Injector(parse_faults("noise=0.25"), [seeing], group, 1)
    assert str(refused.value).startswith("faults: noise: got 0.25 for agent 'eye', which observes ")
    assert "noise is added to the numbers of vectors only" in str(refused.value)
    pictures = np.arange(12, dtype=np.uint8)[None, None]
    there = Observation((pictures,), (None,), np.zeros((1, 1), np.float32), np.ones((1, 1), np.bool_))
    seen = Injector(parse_faults("delay=1"), [seeing], group, 1).begin(np.array([1]), there)
    assert seen.observations[0].dtype == np.uint8
    assert np.array_equal(seen.observations[0], pictures)

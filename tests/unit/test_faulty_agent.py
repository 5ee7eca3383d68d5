"""Agents with faults in a loop of one's own meet the very same ones as in an environment, and act alike."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from hmarl.runtime.errors import InferenceError
from hmarl.sdk import (
    Action,
    AgentClient,
    AsyncAgentClient,
    BundleTeam,
    LocalAgent,
    MisuseError,
    ObservationError,
    StaleActionError,
    UsageError,
    load_bundle,
    make_environment,
)
from hmarl.sdk import evaluate as evaluated
from hmarl.sdk.clients.agent import Agent, AgentStatistics
from hmarl.sdk.clients.faulty_agent import FaultyAgent
from hmarl.sdk.environment import Observation
from hmarl.sdk.evaluation import episode_seeds
from hmarl.sdk.faults import parse_faults
from hmarl.sdk.faults.injector import Injector
from hmarl.sdk.spaces import AgentGroup, AgentSpec
from literal_bundle import write_literal_bundle
from serving import SHIPPED_BUNDLE

EVERYTHING = (
    "delay=0..2,loss=0.2,noise=0.1,freeze=0.05:3,action_delay=0..1,action_loss=0.1,out=0.05:2,restart=0.1:2,"
    "fallback=hold:2:noop:3;agent_1:delay=3"
)


@contextmanager
def faulty(faults: str) -> Iterator[list[FaultyAgent]]:
    bundle = load_bundle(SHIPPED_BUNDLE)
    with ExitStack() as stack:
        yield [stack.enter_context(FaultyAgent(LocalAgent(bundle, each.id), faults)) for each in bundle.manifest.agents]


@pytest.mark.parametrize("sample", [False, True])
def test_a_loop_with_faulty_agents_plays_like_an_environment_with_faults(sample: bool) -> None:
    episodes = 6
    environment = make_environment("mpe/simple_spread", 2, faults=EVERYTHING)
    expected = evaluated(
        environment, BundleTeam(load_bundle(SHIPPED_BUNDLE), environment.spec, sample=sample), episodes, 5
    )
    bare, returns, fresh = make_environment("mpe/simple_spread", 1), [], []
    with faulty(EVERYTHING) as agents:
        for seed in episode_seeds(5, episodes):
            seen, total, ended = bare.reset(np.array([seed])), 0.0, False
            for agent in agents:
                agent.reset(int(seed), sample=sample)
            while not ended:
                acts = [agent.act(seen.observations[0][0, place]) for place, agent in enumerate(agents)]
                fresh += [act.fresh for act in acts]
                result = bare.step((np.array([[act.action for act in acts]]),))
                seen, ended = result.observation, bool(result.truncated[0] | result.terminated[0])
                total += float(result.rewards.astype(np.float64).sum())
            returns.append(total)
        fallbacks = sum(agent.statistics.fallbacks for agent in agents)
    np.testing.assert_allclose(returns, expected.returns, rtol=1e-12)
    assert fallbacks == len(fresh) - sum(fresh) > 0


def test_a_refused_observation_changes_nothing() -> None:
    with faulty("delay=1") as (agent, *_):
        ones, twos = np.ones(18, np.float32), np.full(18, 2, np.float32)
        with pytest.raises(MisuseError, match=r"it has no episode yet; call reset\(seed\) first"):
            agent.act(ones)
        agent.reset(1)
        first = agent.act(ones)
        for wrong in (np.full(18, np.nan, np.float32), np.ones(17, np.float32)):
            with pytest.raises(ObservationError):
                agent.act(wrong)
        assert (first.step, agent.act(twos).step) == (0, 1)
        agent.reset(1, first_step=7)
        assert agent.act(ones).step == 7


def test_wrong_faults_are_refused() -> None:
    for text, said in (("dealy=1", "unknown fault 'dealy'"), ("loss=0.1,fallback=noop:9", "NoOp.action: got 9")):
        with pytest.raises(UsageError, match=said), faulty(text):
            pass


CHANCES = "out=0.1:3,restart=0.05:2,freeze=0.1:2,loss=0.2,action_loss=0.2,fallback=noop:3"


def freshness(agent: FaultyAgent, skips: dict[int, int], steps: int = 60) -> dict[int, bool]:
    """Which of an agent's acts were its own, by their steps; at the first of ``skips`` so many are left out."""
    fresh: dict[int, bool] = {}
    step = 0
    while step < steps:
        if step in skips:
            agent.skip(skips[step])
            step += skips[step]
        act = agent.act(np.full(18, 0.1 * step, np.float32))
        assert act.step == step
        fresh[step] = act.fresh
        step += 1
    return fresh


@pytest.mark.parametrize("skips", [{5: 10}, {0: 10}, {0: 3, 19: 2, 40: 1}, {5: 16}, {18: 7}])
@pytest.mark.parametrize("faults", ["out=20..22,fallback=noop:3", "restart=7..9,fallback=noop:3", CHANCES])
def test_steps_that_are_skipped_shift_no_faults(faults: str, skips: dict[int, int]) -> None:
    with faulty(faults) as (agent, *_), faulty(faults) as (skipping, *_):
        for each in (agent, skipping):
            each.reset(3)
        expected, got = freshness(agent, {}), freshness(skipping, skips)
    assert 0 < sum(expected.values()) < len(expected)
    assert len(got) == len(expected) - sum(skips.values())
    assert got == {step: expected[step] for step in got}


@pytest.mark.parametrize("before", [0, 3])
def test_a_restart_within_skipped_steps_is_one(before: int) -> None:
    class Counted(LocalAgent):
        resets: list[int]

        def reset(self, seed: int, *, first_step: int = 0, **options: Any) -> None:
            super().reset(seed, first_step=first_step, **options)
            self.resets.append(first_step)

    inner = Counted(load_bundle(SHIPPED_BUNDLE), "agent_0")
    inner.resets = []
    with FaultyAgent(inner, "restart=4..5,fallback=noop:3") as agent:
        agent.reset(1)
        for step in range(before):
            agent.act(np.full(18, step, np.float32))
        agent.skip(8 - before)
        assert agent.act(np.ones(18, np.float32)).fresh
        agent.act(np.ones(18, np.float32))
    assert inner.resets == [0, 8]


def test_what_is_under_way_arrives_while_steps_are_skipped() -> None:
    zeros = np.zeros(18, np.float32)
    with faulty("action_delay=2,fallback=noop:3") as (agent, *_):
        agent.reset(1)
        assert [agent.act(zeros).fresh for _ in range(4)] == [False, False, True, True]
        agent.skip(2)  # at which what was chosen at 2 and 3 arrives
        assert [agent.act(zeros).fresh for _ in range(3)] == [False, False, True]


class Seeing(LocalAgent):
    """Keeps what it is shown, by step."""

    def __init__(self) -> None:
        super().__init__(load_bundle(SHIPPED_BUNDLE), "agent_0")
        self.saw: dict[int, float] = {}
        self.forgot: list[int] = []

    def reset(self, seed: int, *, first_step: int = 0, **options: Any) -> None:
        super().reset(seed, first_step=first_step, **options)
        self.forgot.append(first_step)

    def act(self, observation: Any, action_mask: Any = None) -> Action:
        action = super().act(observation, action_mask)
        self.saw[action.step] = float(observation[0])
        return action


@pytest.mark.parametrize("fault", ["out", "restart", "freeze"])
def test_what_arrives_in_an_outage_is_lost_also_where_its_steps_are_skipped(fault: str) -> None:
    inner = Seeing()
    with FaultyAgent(inner, f"delay=3,{fault}=5..7") as agent:
        agent.reset(1)
        for step in range(12):
            if step in (6, 7):
                agent.skip()
            else:
                agent.act(np.full(18, step, np.float32))
    assert inner.saw == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 8: 5, 9: 5, 10: 5, 11: 8}
    assert inner.forgot == ([0, 8] if fault == "restart" else [0])


CHOICES = 40


class Counting:
    """An agent of one's own, that chooses the number of the step."""

    def __init__(self, spec: AgentSpec) -> None:
        self.spec, self.statistics = spec, AgentStatistics()
        self.saw, self.step, self.forgets = -1.0, 0, 0

    def reset(self, seed: int, *, first_step: int = 0, **options: Any) -> None:
        self.step = first_step
        self.forgets += 1

    def act(self, observation: Any, action_mask: Any = None) -> Action:
        self.saw, self.step = float(observation[0]), self.step + 1
        return Action((self.step - 1) % CHOICES, self.step - 1, True, 0, False, {}, 0.0)

    def skip(self, steps: int = 1, *, away: bool = False) -> None:
        self.step += steps

    def close(self) -> None:
        pass


Met = dict[int, tuple[float, int, bool]]  # what is seen and done, and whether it is fresh, by step


def met_in_an_environment(faults: str, seed: int, away: set[int], steps: int) -> Met:
    spec = AgentSpec("a", 1, spaces.Discrete(CHOICES))
    injector, found = Injector(parse_faults(faults), [spec], [AgentGroup((0,), spec)], 1), {}
    for step in range(steps):
        there = np.array([[step not in away]])
        now = Observation((np.full((1, 1, 1), step, np.float32),), (None,), np.zeros((1, 1), np.float32), there)
        seen = injector.seen(now) if step else injector.begin(np.array([seed]), now)
        (done,) = injector.done([np.array([[step % CHOICES]])])
        if step not in away:
            found[step] = float(seen.observations[0][0, 0, 0]), int(done[0, 0]), bool(injector.fresh[0, 0])
    return found


def met_in_a_loop(faults: str, seed: int, away: set[int], steps: int) -> Met:
    inner, found = Counting(AgentSpec("a", 1, spaces.Discrete(CHOICES))), {}
    with FaultyAgent(inner, faults) as agent:
        agent.reset(seed)
        for step in range(steps):
            if step in away:
                agent.skip(away=True)
                continue
            action = agent.act(np.array([step], np.float32))
            assert inner.step == step + 1
            found[step] = inner.saw, int(action.action), action.fresh
    return found


@pytest.mark.parametrize("away", [{4, 5, 6}, {0, 1}, {0, 7, 8, 20}, {3, 5, 6, 7, 8, 9, 30}])
@pytest.mark.parametrize(
    "faults",
    [
        "delay=3",
        "loss=0.5",
        "action_delay=2,fallback=noop:39",
        "action_loss=0.6,fallback=hold:9",
        "delay=2,out=5..8",
        "delay=2,restart=5..8",
        EVERYTHING.replace("agent_1", "a").replace("noop:3", "noop:39"),
    ],
)
def test_an_agent_that_comes_back_meets_what_it_meets_in_an_environment(faults: str, away: set[int]) -> None:
    for seed in range(8):
        assert met_in_a_loop(faults, seed, away, 40) == met_in_an_environment(faults, seed, away, 40)


def test_who_was_away_sees_the_present_and_a_missed_step_leaves_all_under_way() -> None:
    inner = Counting(AgentSpec("a", 1, spaces.Discrete(CHOICES)))
    saw: dict[bool, list[float]] = {}
    for away in (False, True):
        with FaultyAgent(inner, "delay=2") as agent:
            agent.reset(1)
            saw[away] = []
            for step in (*range(4), *range(6, 10)):
                if step == 6:
                    agent.skip(1, away=away)
                    agent.skip(1)  # is back, and nothing was read for it
                agent.act(np.array([step], np.float32))
                saw[away].append(inner.saw)
    assert saw == {False: [0, 0, 0, 1, 3, 3, 6, 7], True: [0, 0, 0, 1, 6, 6, 6, 7]}


def test_no_steps_are_no_absence() -> None:
    inner = Counting(AgentSpec("a", 1, spaces.Discrete(CHOICES)))
    with FaultyAgent(inner, "delay=2") as agent:
        agent.reset(1)
        for step in range(5):
            agent.act(np.array([step], np.float32))
            agent.skip(0, away=True)
    assert inner.saw == 2


@pytest.mark.parametrize("kind", [Agent, LocalAgent, FaultyAgent, AgentClient, AsyncAgentClient])
def test_all_agents_are_told_of_absences_alike(kind: type) -> None:
    expected = inspect.signature(Counting.skip)
    assert inspect.signature(kind.skip) == expected  # type: ignore[attr-defined]


def test_a_step_at_which_the_agent_raises_delays_nothing() -> None:
    class Moody(LocalAgent):
        raises = False

        def act(self, *arguments: Any) -> Action:
            if self.raises:
                self.skip(1)
                raise StaleActionError("not now")
            return super().act(*arguments)

    inner, zeros = Moody(load_bundle(SHIPPED_BUNDLE), "agent_0"), np.zeros(18, np.float32)
    with FaultyAgent(inner, "action_delay=1,fallback=noop:3") as agent:
        agent.reset(1)
        assert [agent.act(zeros).fresh for _ in range(2)] == [False, True]
        inner.raises = True
        with pytest.raises(StaleActionError):
            agent.act(zeros)
        inner.raises = False
        assert [agent.act(zeros).fresh for _ in range(2)] == [False, True], "nothing was chosen at the step before"


@pytest.mark.parametrize("skips", [False, True], ids=["acts on", "skips it, as a control loop does"])
def test_a_step_at_which_the_policy_fails_is_used_up_once(skips: bool, tmp_path: Path) -> None:
    right, wrong, mask = np.ones(6, np.float32), np.full(6, 99, np.float32), np.ones(5, np.bool_)
    inner = LocalAgent(write_literal_bundle(tmp_path / "b", "discrete"), "agent_0")
    with FaultyAgent(inner, "out=4..5,fallback=noop:3") as agent:
        agent.reset(1)
        agent.act(right, mask)
        with pytest.raises(InferenceError):
            agent.act(wrong, mask)
        if skips:
            agent.skip(1)
        acts = [agent.act(right, mask) for _ in range(5)]
    assert [(act.step, act.fresh) for act in acts] == [(2, True), (3, True), (4, False), (5, False), (6, True)]
    assert inner.statistics.missed_steps == 1
